// A plug-in that needs a library of its own, and throws through it.
#include <stdexcept>

#ifdef HELPER
void help(const char *what) { throw std::runtime_error(what); }
#else
void help(const char *what);
extern "C" void run() { help(NAME); }
#endif
