// Asks for what glibc loads modules for: an encoding that is not built in, and a user's name.
#include <iconv.h>
#include <pwd.h>
#include <stdio.h>
#include <unistd.h>

int main(void) {
    struct passwd *user = getpwuid(0);
    printf("user %s\n", user ? user->pw_name : "unknown");
    printf("ISO-8859-2 %s\nwaiting\n", iconv_open("ISO-8859-2", "UTF-8") == (iconv_t)-1 ? "unknown" : "known");
    fflush(stdout);
    for (char byte; read(0, &byte, 1) > 0;) {
    }
    return 0;
}
