/* The service that all supervisors run in the benchmark. Its first act is to take the time.
 *
 *   service run FIFO ID                 report "S", then sleep for ever
 *   service print FIFO ID BYTES         report "S"; write BYTES to stdout, 100 a line, 64,000 a write; report "D"; sleep
 *   service orphans FIFO ID COUNT       COUNT grandchildren lose their parent and wait; report "R" and let them all end
 *   service stream FIFO ID COUNT        report "S"; COUNT grandchildren lose their parent and end, one by one; report "R"
 *   service floor FIFO COUNT            the least that a supervisor can do: vfork, execve, waitpid, and again
 *   service nobody FIFO ID MODE COUNT   the same service in a mode of above; the kernel reaps for it (SA_NOCLDWAIT)
 *
 * A report is 48 bytes in one write: "K id pid nanoseconds", spaces, a newline. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void report(const char *fifo, char kind, const char *id, long long time) {
    char record[96];
    int length = snprintf(record, sizeof record, "%c %s %d %lld", kind, id, (int)getpid(), time);
    memset(record + length, ' ', sizeof record - length);
    record[47] = '\n';
    int fd = open(fifo, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    while (fd >= 0 && write(fd, record, 48) < 0 && (errno == EAGAIN || errno == EINTR)) usleep(1000);
    close(fd);
}

static void print(long long bytes) {
    enum { LINE = 100, CHUNK = 64000 };
    static char chunk[CHUNK];
    for (int at = 0; at < CHUNK; at++) chunk[at] = at % LINE == LINE - 1 ? '\n' : 'a' + at % LINE % 26;
    while (bytes > 0) {
        ssize_t done = 0, want = bytes < CHUNK ? bytes : CHUNK;
        for (ssize_t written; done < want; done += written)
            if ((written = write(1, chunk + done, want - done)) < 0) {
                if (errno != EINTR && errno != EAGAIN) _exit(1);
                written = 0;
            }
        bytes -= want;
    }
}

static void orphans(const char *fifo, const char *id, int count) {
    int gate[2];
    if (pipe(gate)) _exit(1);
    for (int number = 0; number < count; number++) {
        pid_t parent = fork();
        if (parent == 0) {
            if (fork() == 0) {
                char byte;
                close(gate[1]);
                while (read(gate[0], &byte, 1) < 0 && errno == EINTR) {}
                _exit(0);
            }
            _exit(0);
        }
        while (waitpid(parent, NULL, 0) < 0 && errno == EINTR) {}
    }
    report(fifo, 'R', id, now());
    close(gate[1]);
}

static void stream(const char *fifo, const char *id, int count) {
    for (int number = 0; number < count; number++) {
        pid_t parent = fork();
        if (parent == 0) {
            fork();
            _exit(0);
        }
        while (waitpid(parent, NULL, 0) < 0 && errno == EINTR) {}
    }
    report(fifo, 'R', id, now());
}

static pid_t start(const char *self, const char *fifo, int number) {
    char id[16];
    snprintf(id, sizeof id, "s%d", number);
    pid_t child = vfork();
    if (child == 0) {
        execl(self, self, "run", fifo, id, (char *)0);
        _exit(127);
    }
    return child;
}

static void end(int number) {
    (void)number;
    kill(0, SIGKILL);
}

static int least(const char *self, const char *fifo, int count) {
    setpgid(0, 0);
    signal(SIGTERM, end);
    pid_t *children = calloc(count, sizeof *children);
    for (int number = 0; number < count; number++) children[number] = start(self, fifo, number);
    for (;;) {
        pid_t ended = waitpid(-1, NULL, 0);
        for (int number = 0; number < count; number++)
            if (children[number] == ended) children[number] = start(self, fifo, number);
    }
}

static int nobody(const char *self, char **arguments) {
    struct sigaction reaped = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
    setpgid(0, 0);
    signal(SIGTERM, end);
    sigaction(SIGCHLD, &reaped, NULL);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (vfork() == 0) {
        execl(self, self, arguments[4], arguments[2], arguments[3], arguments[5], (char *)0);
        _exit(127);
    }
    for (;;) pause();
}

int main(int count, char **arguments) {
    long long begun = now();
    if (count < 4) return 2;
    const char *mode = arguments[1], *fifo = arguments[2], *id = arguments[3];
    if (strcmp(mode, "floor") == 0) return least(arguments[0], fifo, atoi(id));
    if (strcmp(mode, "nobody") == 0 && count > 5) return nobody(arguments[0], arguments);
    report(fifo, 'S', id, begun);
    if (strcmp(mode, "print") == 0 && count > 4) {
        print(atoll(arguments[4]));
        report(fifo, 'D', id, now());
    } else if (strcmp(mode, "orphans") == 0 && count > 4) {
        orphans(fifo, id, atoi(arguments[4]));
    } else if (strcmp(mode, "stream") == 0 && count > 4) {
        stream(fifo, id, atoi(arguments[4]));
    }
    for (;;) pause();
}
