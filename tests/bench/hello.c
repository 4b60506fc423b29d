/* The program that every input starts. Prints its version, the monotonic clock on entry to main(), and where it
 * runs from. With BENCH_HOLD=FILE it stays alive until FILE is gone. */
#define _GNU_SOURCE
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(void) {
    struct timespec now, nap = {0, 5000000};
    char exe[PATH_MAX] = "?";
    clock_gettime(CLOCK_MONOTONIC, &now);
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n > 0) exe[n] = 0;
    printf("HELLO %s %lld %s\n", VERSION, (long long)now.tv_sec * 1000000000LL + now.tv_nsec, exe);
    fflush(stdout);
    const char *hold = getenv("BENCH_HOLD");
    while (hold && *hold && access(hold, F_OK) == 0) nanosleep(&nap, 0);
    return 0;
}
