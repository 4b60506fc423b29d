"""Uses extension modules with libraries, its own interpreter, and programs of the place."""
import ctypes, hashlib, lzma, os, sqlite3, ssl, subprocess, sys

print("executable", sys.executable)
print("prefix", sys.prefix)
print("libc", os.confstr("CS_GNU_LIBC_VERSION"))
print("context", type(ssl.create_default_context()).__name__, ssl.OPENSSL_VERSION)
print("digest", hashlib.sha256(b"kitbag").hexdigest())
print("sum", sqlite3.connect(":memory:").execute("select 40 + 2").fetchone()[0])
print("back", lzma.decompress(lzma.compress(b"there and back")).decode())
print("size", ctypes.sizeof(ctypes.c_long))
child = "import os, ssl; print('child', os.confstr('CS_GNU_LIBC_VERSION'), ssl.OPENSSL_VERSION.split()[0])"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout, end="")
for program in (["/usr/bin/env"], ["/bin/sh", "-c", "echo the shell of the place; getconf GNU_LIBC_VERSION; :"]):
    if os.path.exists(program[0]):
        print(subprocess.run(program, capture_output=True, text=True, check=True).stdout, end="")
print("waiting", flush=True)
sys.stdin.read()
