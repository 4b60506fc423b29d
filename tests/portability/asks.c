// Uses a locale and an encoding that are not built in, then becomes a program of the host unless told otherwise.
#include <iconv.h>
#include <locale.h>
#include <stdio.h>
#include <unistd.h>

int main(int count, char **arguments) {
    const char *locale = setlocale(LC_ALL, "C.UTF-8");
    printf("locale %s\n", locale ? locale : "unknown");
    printf("ISO-8859-2 %s\n", iconv_open("ISO-8859-2", "UTF-8") == (iconv_t)-1 ? "unknown" : "known");
    fflush(stdout);
    return count > 1 ? 0 : execl("/usr/bin/env", "env", (char *)0);
}
