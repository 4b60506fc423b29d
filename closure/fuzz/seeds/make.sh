#!/bin/sh
# Writes the seeds: small ELF files that between them have all that is read. Needs gcc with -m32.
set -eu
cd "$(dirname "$0")/facts"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cat >"$work/lib.c" <<'C'
__attribute__((section(".note.dlopen"), used, aligned(4))) static const struct {
    unsigned name, length, type; char owner[4]; char text[68];
} note = {4, 68, 0x407c0c0a, "FDO", "[{\"soname\":[\"libz.so.1\"],\"feature\":\"z\",\"priority\":\"recommended\"}]"};
int one(void) { return 1; }
C
echo 'int one(void); int main(void) { return one(); }' >"$work/app.c"
echo 'V_1 { global: one; local: *; }; V_2 { } V_1;' >"$work/versions"
build() { gcc -Os -s -nostdlib -Wl,-z,noseparate-code,--build-id=none,-z,max-page-size=4096 "$@"; }
build -shared -fPIC -o "$work/libone.so.1" -Wl,-soname,libone.so.1,--version-script="$work/versions",-z,x86-64-v2 "$work/lib.c"
cp "$work/libone.so.1" library
build -pie -fPIE -Wl,-rpath,'$ORIGIN/../lib:/opt/${LIB}',--enable-new-dtags,-e,main -o program "$work/app.c" "$work/libone.so.1"
build -m32 -shared -fPIC -Wl,-rpath,'/opt',--disable-new-dtags,-soname,lib32.so -o library-32 "$work/lib.c"
build -static -Wl,-e,main -o static "$work/app.c" -x c "$work/lib.c"
