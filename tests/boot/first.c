/* What a service finds on a machine whose only program is the bundle. */
#include <arpa/inet.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void loopback(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int server = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    int works = bind(server, (struct sockaddr *)&address, length) == 0 && listen(server, 1) == 0 &&
                getsockname(server, (struct sockaddr *)&address, &length) == 0 &&
                connect(client, (struct sockaddr *)&address, length) == 0;
    printf("loopback %s\n", works ? "works" : "fails");
}

static void places(void) {
    static const char *const all[] = {"/proc/self", "/sys/class", "/dev/null",  "/dev/pts/ptmx",
                                      "/dev/shm",   "/run",       "/tmp",       "/sys/fs/cgroup/cgroup.procs"};
    struct stat found;
    for (unsigned at = 0; at < sizeof all / sizeof *all; at++)
        printf("%s %s\n", all[at], stat(all[at], &found) == 0 ? "is there" : "is missing");
}

/* Zombies and orphans whose parent is now the first process. */
static int strangers(void) {
    int count = 0;
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; proc && (entry = readdir(proc));) {
        char path[300], line[512], state;
        int parent;
        snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
        FILE *file = atoi(entry->d_name) > 1 ? fopen(path, "r") : NULL;
        if (!file) continue;
        if (fgets(line, sizeof line, file) && sscanf(strrchr(line, ')') + 1, " %c %d", &state, &parent) == 2 &&
            parent == 1 && atoi(entry->d_name) != getpid())
            count++;
        fclose(file);
    }
    if (proc) closedir(proc);
    return count;
}

/* 500 processes that lose their parent, and end. */
static void orphans(void) {
    for (int number = 0; number < 500; number++) {
        if (fork() == 0) {
            if (fork() == 0) { usleep(200 * 1000); _exit(0); }
            _exit(0);
        }
    }
    while (wait(NULL) > 0) {}
    int most = 0, now = 0, turns = 0;
    do {
        now = strangers();
        if (now > most) most = now;
        usleep(20 * 1000);
    } while (now > 0 && ++turns < 1000);
    printf("orphans %d then %d\n", most > 0, now);
}

int main(int count, char **arguments) {
    char name[64] = "";
    gethostname(name, sizeof name);
    printf("machine %s, terminal %d\n", name, isatty(0));
    loopback();
    places();
    orphans();
    puts("all looked at");
    fflush(stdout);
    if (count > 1 && strcmp(arguments[1], "stay") == 0) pause();
    return 0;
}
