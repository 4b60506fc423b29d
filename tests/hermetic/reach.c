/* Reaches for what it is told to, in order, and says what came of it: `read /x: ok`, or the errno's text. It goes on
 * whatever was refused.
 *
 *   read P   list P   look P   write P   make P   connect P   go P (chdir)
 *   run P           forks, executes P, says how it ended; `find P` looks P up in PATH
 *   load P          dlopen(3), where it is built with -DLOAD
 *   threads N P     N threads read P at once          forks N P   so do N processes
 *   vfork N P       N children, one after the other, execute P
 *   realtime        sends itself SIGRTMIN+3, and says that it came
 *   stop            stops itself (SIGSTOP) and says when it goes on
 *   executing P     a thread that is not the first one executes P
 *   orphan          leaves a process behind that sleeps
 *   wait            says `ready`, sleeps until SIGTERM or SIGINT, says which
 *   exit N   kill N
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef LOAD
#include <dlfcn.h>
#endif

static void say(const char *what, const char *path, int failed) {
    printf("%s %s: %s\n", what, path, failed ? strerror(errno) : "ok");
    fflush(stdout);
}

static int read_file(const char *path) {
    char byte;
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return -1;
    int got = read(fd, &byte, 1);
    close(fd);
    return got < 0 ? -1 : 0;
}

static int list(const char *path) {
    DIR *dir = opendir(path);
    return dir ? closedir(dir) : -1;
}

static int write_file(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    return fd < 0 ? -1 : close(fd);
}

static int connect_to(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int failed = connect(fd, (struct sockaddr *)&address, sizeof address);
    int error = errno;
    close(fd);
    errno = error;
    return failed;
}

static int run(const char *path, int by_name) {
    int status;
    pid_t child = fork();
    if (!child) {
        char *const argv[] = {(char *)path, "--version", NULL};
        by_name ? execvp(path, argv) : execv(path, argv);
        _exit(errno == EACCES ? 77 : 78);
    }
    waitpid(child, &status, 0);
    printf("ran %s: %s %d\n", path, WIFEXITED(status) ? "exit" : "signal",
           WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    fflush(stdout);
    return 0;
}

static void run_vforked(char *path) {
    if (!vfork()) {
        execl(path, path, "exit", "0", NULL);
        _exit(1);
    }
    wait(NULL);
}

static void *reader(void *path) {
    for (int i = 0; i < 50; i++)
        read_file(path);
    return NULL;
}

static void *executor(void *path) {
    execl(path, path, "exit", "23", NULL);
    return NULL;
}

static volatile sig_atomic_t caught;
static void on_signal(int number) { caught = number; }

static void wait_for_signal(void) {
    sigset_t set;
    int number;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    puts("ready");
    fflush(stdout);
    sigwait(&set, &number);
    printf("got %s\n", number == SIGINT ? "INT" : "TERM");
    fflush(stdout);
}

int main(int argc, char **argv) {
    (void)argc;
    for (char **next = argv + 1; *next; next++) {
        const char *what = *next;
#define IS(name) !strcmp(what, name)
        if (IS("wait")) {
            wait_for_signal();
        } else if (IS("realtime")) {
            signal(SIGRTMIN + 3, on_signal);
            raise(SIGRTMIN + 3);
            puts(caught == SIGRTMIN + 3 ? "realtime came" : "realtime lost");
        } else if (IS("stop")) {
            raise(SIGSTOP);
            puts("goes on");
            fflush(stdout);
        } else if (IS("orphan")) {
            if (!fork()) {
                setsid();
                sleep(1000);
                _exit(0);
            }
        } else if (!next[1]) {
            fprintf(stderr, "reach: `%s` needs a value\n", what);
            return 111;
        } else if (IS("exit")) {
            return atoi(*++next);
        } else if (IS("kill")) {
            struct rlimit no_core = {0, 0};
            setrlimit(RLIMIT_CORE, &no_core);
            kill(getpid(), atoi(*++next));
        } else if (IS("run") || IS("find")) {
            run(*++next, IS("find"));
        } else if (IS("threads")) {
            int count = atoi(*++next);
            pthread_t threads[count];
            ++next;
            for (int i = 0; i < count; i++)
                pthread_create(&threads[i], NULL, reader, *next);
            for (int i = 0; i < count; i++)
                pthread_join(threads[i], NULL);
            puts("threads done");
        } else if (IS("forks")) {
            int count = atoi(*++next);
            ++next;
            for (int i = 0; i < count; i++)
                if (!fork()) {
                    reader(*next);
                    _exit(0);
                }
            while (wait(NULL) > 0)
                ;
            puts("forks done");
        } else if (IS("vfork")) {
            int count = atoi(*++next);
            ++next;
            for (int i = 0; i < count; i++)
                run_vforked(*next);
            puts("vforks done");
        } else if (IS("executing")) {
            pthread_t thread;
            fflush(stdout);
            pthread_create(&thread, NULL, executor, *++next);
            pthread_join(thread, NULL);
            puts("not executed");
#ifdef LOAD
        } else if (IS("load")) {
            void *library = dlopen(*++next, RTLD_NOW);
            printf("load %s: %s\n", *next, library ? "ok" : dlerror());
#endif
        } else {
            struct stat found;
            const char *path = *++next;
            int failed = IS("read")      ? read_file(path)
                         : IS("list")    ? list(path)
                         : IS("look")    ? stat(path, &found)
                         : IS("write")   ? write_file(path)
                         : IS("make")    ? mkdir(path, 0700)
                         : IS("go")      ? chdir(path)
                         : IS("connect") ? connect_to(path)
                                         : (errno = EINVAL, -1);
            say(what, path, failed);
        }
        fflush(stdout);
    }
    return 0;
}
