/* Services that meet their limits, and one that looks at them, on a machine whose only programs are bundles: /init, of
   which these are services, and /inner. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROOT "/sys/fs/cgroup"
#define HOUSE ROOT "/house"
#define BOMB ROOT "/kitbag-1.bomb"
#define NEST ROOT "/kitbag-1.nest"
/* The bundle's command with these arguments. */
#define INIT(...) (const char *const[]){"/init", __VA_ARGS__, NULL}

static char own_path[4096];

/* What a file has, with spaces for its newlines; or why it cannot be read. Overwritten by the next call. */
static const char *content(const char *path) {
    static char text[4096];
    int file = open(path, O_RDONLY);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (length < 0) length = snprintf(text, sizeof text, "%s", strerror(errno));
    if (file >= 0) close(file);
    while (length > 0 && text[length - 1] == '\n') length--;
    text[length] = 0;
    for (char *at = text; *at; at++)
        if (*at == '\n') *at = ' ';
    return text;
}

static void write_to(const char *path, const char *text) {
    int file = open(path, O_WRONLY | O_CREAT, 0600);
    if (file < 0 || write(file, text, strlen(text)) < 0) printf("%s: %s\n", path, strerror(errno));
    if (file >= 0) close(file);
}

static void wait_for(const char *path) {
    while (access(path, F_OK) != 0) usleep(20 * 1000);
}

/* --- What services do --- */

static void eat(int megabytes) {
    size_t size = (size_t)megabytes << 20;
    char *all = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    /* Large pages are fewer faults, which an emulated machine takes its time for. */
    if (all != MAP_FAILED) madvise(all, size, MADV_HUGEPAGE);
    for (size_t at = 0; all != MAP_FAILED && at < size; at += 4096) all[at] = 1;
    printf("has eaten %d M\n", megabytes);
}

/* The next run stays. */
static void eat_once(int megabytes) {
    if (access("/run/eater-was-here", F_OK) != 0) {
        write_to("/run/eater-was-here", "");
        eat(megabytes);
    }
    write_to("/run/eater-stays", "");
    pause();
}

/* Children that stay, as many as it may have. */
static void fork_all(int most) {
    int count = 0;
    pid_t child = 0;
    while (count < most && (child = fork()) > 0) count++;
    if (count < most && child == 0) {
        pause();
        _exit(0);
    }
    printf("forked %d, then: %s\n", count, child < 0 ? strerror(errno) : "enough");
}

/* Each process forks, and ends. It has left the session, ignores SIGTERM, and has taken off the mark by which the
   supervisor knows it. */
static void fork_away(void) {
    struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
    signal(SIGCHLD, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    if (setrlimit(RLIMIT_LOCKS, &none) != 0) puts("it keeps its mark");
    for (;;) {
        if (fork() != 0) _exit(0);
        setsid();
        usleep(20 * 1000);
    }
}

static void bomb(void) {
    for (int number = 0; number < 4; number++)
        if (fork() == 0) fork_away();
    pause();
}

/* Where it is, and where its supervisor is. */
static void look(const char *above) {
    char path[300];
    printf("service in %s\n", content("/proc/self/cgroup"));
    snprintf(path, sizeof path, "/proc/%d/cgroup", getppid());
    printf("supervisor in %s\n", content(path));
    snprintf(path, sizeof path, "%s/cgroup.subtree_control", above);
    printf("controllers below: %s.\n", content(path));
    if (getenv("STAYS")) pause();
}

/* A bundle, in this one's cgroup. */
static void nest(void) {
    setenv("STAYS", "1", 1);
    execl("/inner", "/inner", (char *)NULL);
}

/* --- What the one that looks does --- */

/* Runs a program; returns its status as wait(2) has it. */
static int run(const char *const *arguments) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        execv(arguments[0], (char *const *)arguments);
        _exit(127);
    }
    waitpid(child, &status, 0);
    return status;
}

/* Prints the lines of a program's output that have both words, and how many they are. */
static void show(const char *title, const char *const *arguments, const char *one, const char *two) {
    int ends[2], count = 0;
    char line[4096];
    if (pipe(ends) != 0) return;
    if (fork() == 0) {
        dup2(ends[1], 1);
        close(ends[0]);
        execv(arguments[0], (char *const *)arguments);
        _exit(127);
    }
    close(ends[1]);
    FILE *output = fdopen(ends[0], "r");
    while (fgets(line, sizeof line, output))
        if (strstr(line, one) && strstr(line, two)) printf("%s %s", title, line), count++;
    fclose(output);
    wait(NULL);
    printf("%s: %d.\n", title, count);
}

static void memory(void) {
    wait_for("/run/eater-stays");
    run(INIT("wait", "--ready", "eater"));
    show("status", INIT("status", "--json"), "\"how\"", "memory limit");
    show("events", INIT("events"), "\"eater\"", "memory limit");
    /* What is executed beside it counts, too, and is no failure of its own. */
    int status = run(INIT("exec", "eater", "--", own_path, "eat", "48"));
    printf("what ate beside it ended by signal %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    run(INIT("stop", "eater"));
    show("stopped", INIT("status", "--json"), "\"how\"", "memory limit");
    /* The machine's memory ends before this one's limit. */
    run(INIT("run-task", "glutton", "--wait"));
}

static int words_in(const char *text) {
    int count = 0;
    for (const char *at = text; *at; at++) count += *at != ' ' && (at == text || at[-1] == ' ');
    return count;
}

static void wait_for_processes(const char *path, int count) {
    while (words_in(content(path)) < count) usleep(20 * 1000);
}

static void processes(void) {
    wait_for_processes(ROOT "/kitbag-1.few/cgroup.procs", 5);
    run(INIT("exec", "few", "--", own_path, "fork-beside"));
}

static void stop(void) {
    int status;
    pid_t beside = fork();
    if (beside == 0) {
        const char *const *arguments = INIT("exec", "bomb", "--", own_path, "stay-beside");
        execv(arguments[0], (char *const *)arguments);
        _exit(127);
    }
    wait_for("/run/beside-stays");
    /* One beside it, the first of it, and chains of those that fork on. */
    wait_for_processes(BOMB "/cgroup.procs", 6);
    puts("bombs are there");
    run(INIT("stop", "bomb"));
    printf("bombs: %s.\n", content(BOMB "/cgroup.events"));
    waitpid(beside, &status, 0);
    printf("what stayed beside it ended by signal %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
}

/* A child in the cgroup of the house. */
static pid_t fork_in_house(void) {
    pid_t child = fork();
    if (child == 0) write_to(HOUSE "/cgroup.procs", "0");
    return child;
}

/* The process whose leaf is in a cgroup, other than this one; 0: none yet. */
static int supervisor_in(const char *path, int other) {
    int found = 0, pid;
    char rest;
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        if (sscanf(entry->d_name, "kitbag-%d%c", &pid, &rest) == 1 && pid != other) found = pid;
    if (folder) closedir(folder);
    return found;
}

static int wait_for_supervisor(int other) {
    int pid;
    char path[300];
    while ((pid = supervisor_in(NEST, other)) == 0) usleep(20 * 1000);
    snprintf(path, sizeof path, NEST "/kitbag-%d.look/cgroup.procs", pid);
    while (words_in(content(path)) != 1) usleep(20 * 1000);
    return pid;
}

static int folders_in(const char *path) {
    int count = 0;
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        count += entry->d_type == DT_DIR && entry->d_name[0] != '.';
    if (folder) closedir(folder);
    return count;
}

/* A supervisor in a service's cgroup is killed, which leaves cgroups below that, and comes back. */
static void nested(void) {
    int first = wait_for_supervisor(0);
    kill(first, SIGKILL);
    wait_for_supervisor(first);
    printf("nested again, %d folders\n", folders_in(NEST));
    run(INIT("stop", "nest"));
    printf("nested: %d folders, %s.\n", folders_in(NEST), content(NEST "/cgroup.events"));
}

/* A bundle that is not the first process, in a cgroup that others have, or that it has alone. */
static void inner(int is_shared) {
    int status;
    mkdir(HOUSE, 0755);
    pid_t neighbour = is_shared ? fork_in_house() : -1;
    if (neighbour == 0)
        for (;;) pause();
    while (is_shared && !*content(HOUSE "/cgroup.procs")) usleep(1000);
    pid_t bundle = fork_in_house();
    if (bundle == 0) {
        execl("/inner", "/inner", (char *)NULL);
        _exit(127);
    }
    waitpid(bundle, &status, 0);
    if (is_shared) {
        kill(neighbour, SIGKILL);
        waitpid(neighbour, NULL, 0);
    }
    printf("inner ended with %d; left: %d folders, controllers '%s', ", status, folders_in(HOUSE),
           content(HOUSE "/cgroup.subtree_control"));
    printf("%s.\n", rmdir(HOUSE) == 0 ? "no process" : strerror(errno));
}

static void look_at_all(void) {
    look(ROOT);
    /* First, as it keeps the machine busy. */
    stop();
    processes();
    memory();
    nested();
    inner(0);
    inner(1);
    puts("all looked at");
    run(INIT("stop"));
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "", *with = count > 2 ? arguments[2] : "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (readlink("/proc/self/exe", own_path, sizeof own_path - 1) < 0) return 1;
    if (strcmp(what, "eat") == 0) eat(atoi(with));
    if (strcmp(what, "eat-once") == 0) eat_once(atoi(with));
    if (strcmp(what, "fork") == 0) fork_all(atoi(with));
    if (strcmp(what, "fork-and-stay") == 0) fork_all(atoi(with)), pause();
    if (strcmp(what, "fork-beside") == 0) printf("beside it in %s\n", content("/proc/self/cgroup")), fork_all(1);
    if (strcmp(what, "stay-beside") == 0) write_to("/run/beside-stays", ""), pause();
    if (strcmp(what, "bomb") == 0) bomb();
    if (strcmp(what, "nest") == 0) nest();
    if (strcmp(what, "look") == 0) look(with);
    if (strcmp(what, "look-at-all") == 0) look_at_all();
    return 0;
}
