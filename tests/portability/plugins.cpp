// Says where it is, opens plug-ins in all the ways that programs do, and waits until its input ends.
#include <dlfcn.h>
#include <gnu/libc-version.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <stdexcept>
#include <string>

extern char **environ;

// Says that one plug-in is opened by its name alone: https://systemd.io/ELF_DLOPEN_METADATA
asm(".pushsection .note.dlopen,\"a\",@note\n"
    ".balign 4\n"
    ".long 4\n"
    ".long 2f - 1f\n"
    ".long 0x407c0c0a\n"
    ".asciz \"FDO\"\n"
    "1: .asciz \"[{\\\"soname\\\":[\\\"libby_name.so.1\\\"],\\\"priority\\\":\\\"required\\\"}]\"\n"
    "2: .balign 4\n"
    ".popsection\n");

static void open(const std::string &path) {
    void *library = dlopen(path.c_str(), RTLD_NOW);
    if (!library) {
        std::cout << "cannot open it: " << dlerror() << "\n";
        return;
    }
    auto run = reinterpret_cast<void (*)()>(dlsym(library, "run"));
    try {
        run();
    } catch (const std::runtime_error &error) {
        std::cout << "caught from a plug-in: " << error.what() << "\n";
    }
}

int main(int count, char **args) {
    if (count > 1 && !strcmp(args[1], "--again")) {
        args[1] = const_cast<char *>("--started-again");
        execv("/proc/self/exe", args);
        std::cout << "not started again\n";
        return 1;
    }
    if (count > 1 && !strcmp(args[1], "--shell")) {
        return system("/bin/sh -c 'echo the shell of the place; getconf GNU_LIBC_VERSION; env'") ? 1 : 0;
    }
    char exe[4096] = {};
    readlink("/proc/self/exe", exe, sizeof exe - 1);
    std::cout << "argv[0] " << args[0] << "\nexe " << exe << "\nlibc " << gnu_get_libc_version() << "\n";
    for (char **variable = environ; *variable; variable++) {
        if (!strncmp(*variable, "LD_", 3)) {
            std::cout << "inherited " << *variable << "\n";
        }
    }
    std::string self = args[0];
    open(self.substr(0, self.rfind('/')) + "/../plugins/by_path.so");
    open("by_origin.so");
    open("libby_name.so.1");
    std::cout << (count > 1 ? args[1] : "started") << ", waiting" << std::endl;
    for (char byte; read(0, &byte, 1) > 0;) {
    }
    return 0;
}
