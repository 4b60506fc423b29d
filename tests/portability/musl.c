// A musl program with a library of its own.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef LIBRARY
int twice(int number) { return 2 * number; }
#else
int twice(int number);

static void *count(void *number) {
    *(int *)number = twice(21);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--shell")) {
        return system("/bin/sh -c 'echo the shell of the place; getconf GNU_LIBC_VERSION; env'") ? 1 : 0;
    }
    int number = 0;
    pthread_t thread;
    pthread_create(&thread, NULL, count, &number);
    pthread_join(thread, NULL);
    printf("argv[0] %s\nmusl says %d\nwaiting\n", argv[0], number);
    fflush(stdout);
    for (char byte; read(0, &byte, 1) > 0;) {
    }
    return 0;
}
#endif
