/* A disk that fails, for one process: preloaded, it counts the calls that change files below a folder, and at the N-th
 * it fails with an error number, from there on if wanted, or ends the process with a signal.
 *
 * A process that dies within a write leaves half of it; so does a disk that is full from there on. Nothing is counted
 * before torture_begin(); a program that the process starts is left alone. What happened is in a file that the process
 * shares with whoever watches it, see faults.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, FAIL, SIGNAL };
enum { NEEDS_SPACE, NEEDS_NONE }; /* a full disk refuses only the former */

struct report {
    long all;    /* calls so far */
    long space;  /* those of them that need space */
    long fired;  /* the number of the call that was the N-th, 0 if there was none */
    char what[1000];
};

static struct report *report;
static char folder[PATH_MAX];
static size_t length;
static long target;
static int action, value, sticky;

int torture_begin(const char *home, const char *file, long at, int what, int with, int stays) {
    int fd = open(file, O_RDWR);
    void *shared = mmap(NULL, sizeof(struct report), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || shared == MAP_FAILED || !realpath(home, folder)) return -1;
    close(fd);
    length = strlen(folder);
    target = at, action = what, value = with, sticky = stays;
    report = shared;
    return 0;
}

static int below(const char *path) {
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* The error number with which a call on `path` must fail, or 0. A signal that is due is sent: `half` does what a dying
 * process had done of its call. */
static int fault(const char *call, const char *path, int need, void (*half)(void *), void *of) {
    long all, space = 0, number;
    if (!below(path)) return 0;
    all = __atomic_add_fetch(&report->all, 1, __ATOMIC_SEQ_CST);
    if (need == NEEDS_SPACE) space = __atomic_add_fetch(&report->space, 1, __ATOMIC_SEQ_CST);
    number = action == FAIL && value == ENOSPC ? space : all;
    if (action == COUNT || number == 0 || number < target) return 0;
    if (number > target && !(action == FAIL && sticky)) return 0;
    if (number == target) {
        report->fired = number;
        snprintf(report->what, sizeof report->what, "%s %s", call, path + length + (path[length] == '/'));
        if (half && (action == SIGNAL ? value == SIGKILL : value == ENOSPC && sticky)) half(of);
    }
    if (action == FAIL) return value;
    kill(getpid(), value);
    return 0;
}

static int fault_path(const char *call, int at, const char *path, int need) {
    char full[2 * PATH_MAX], start[PATH_MAX], link[64];
    ssize_t size = 0;
    if (!report || !path) return 0;
    if (path[0] == '/') return fault(call, path, need, NULL, NULL);
    if (at == AT_FDCWD) {
        if (!getcwd(start, sizeof start)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        if ((size = readlink(link, start, sizeof start - 1)) < 0) return 0;
        start[size] = '\0';
    }
    snprintf(full, sizeof full, "%s/%s", start, path);
    return fault(call, full, need, NULL, NULL);
}

static int fault_file(const char *call, int fd, int need, void (*half)(void *), void *of) {
    char path[PATH_MAX], link[64];
    ssize_t size;
    if (!report) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if ((size = readlink(link, path, sizeof path - 1)) < 0) return 0;
    path[size] = '\0';
    return fault(call, path, need, half, of);
}

/* The function of the C library that `name` hides. */
#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define REFUSE(number) \
    do { \
        int refused = (number); \
        if (refused) { \
            errno = refused; \
            return -1; \
        } \
    } while (0)

struct piece { ssize_t (*real)(int, const void *, size_t); int fd; const void *data; size_t size; };
struct placed { ssize_t (*real)(int, const void *, size_t, off_t); int fd; const void *data; size_t size; off_t place; };

static void half_piece(void *of) {
    struct piece *p = of;
    if (p->size > 1 && p->real(p->fd, p->data, p->size / 2) < 0) return;
}

static void half_placed(void *of) {
    struct placed *p = of;
    if (p->size > 1 && p->real(p->fd, p->data, p->size / 2, p->place) < 0) return;
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    struct piece of = {real, fd, data, size};
    REFUSE(fault_file("write", fd, NEEDS_SPACE, half_piece, &of));
    return real(fd, data, size);
}

#define PWRITE(name, offset) \
    ssize_t name(int fd, const void *data, size_t size, offset place) { \
        REAL(ssize_t, #name, int, const void *, size_t, off_t); \
        struct placed of = {real, fd, data, size, place}; \
        REFUSE(fault_file("pwrite", fd, NEEDS_SPACE, half_placed, &of)); \
        return real(fd, data, size, place); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    REFUSE(fault_file("writev", fd, NEEDS_SPACE, NULL, NULL));
    return real(fd, parts, count);
}

#define SENDFILE(name, offset) \
    ssize_t name(int to, int from, offset *place, size_t size) { \
        REAL(ssize_t, #name, int, int, offset *, size_t); \
        REFUSE(fault_file("sendfile", to, NEEDS_SPACE, NULL, NULL)); \
        return real(to, from, place, size); \
    }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *place, size_t size, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    REFUSE(fault_file("copy_file_range", to, NEEDS_SPACE, NULL, NULL));
    return real(from, start, to, place, size, flags);
}

#define ON_FILE(name, need) \
    int name(int fd) { \
        REAL(int, #name, int); \
        REFUSE(fault_file(#name, fd, need, NULL, NULL)); \
        return real(fd); \
    }
ON_FILE(fsync, NEEDS_SPACE)
ON_FILE(fdatasync, NEEDS_SPACE)

#define TRUNCATE(name, offset) \
    int name(int fd, offset size) { \
        REAL(int, #name, int, offset); \
        REFUSE(fault_file("ftruncate", fd, NEEDS_SPACE, NULL, NULL)); \
        return real(fd, size); \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define CHANGES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define SPACE_OF(flags) ((flags) & O_CREAT ? NEEDS_SPACE : NEEDS_NONE)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (CHANGES(flags)) REFUSE(fault_path("open", AT_FDCWD, path, SPACE_OF(flags))); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(int, #name, int, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (CHANGES(flags)) REFUSE(fault_path("open", at, path, SPACE_OF(flags))); \
        return real(at, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

/* What a hardened program calls where it gives no mode. */
#define OPEN_2(name) \
    int name(const char *path, int flags) { \
        REAL(int, #name, const char *, int); \
        if (CHANGES(flags)) REFUSE(fault_path("open", AT_FDCWD, path, SPACE_OF(flags))); \
        return real(path, flags); \
    }
OPEN_2(__open_2)
OPEN_2(__open64_2)

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    REFUSE(fault_path("rename", AT_FDCWD, to, NEEDS_SPACE));
    return real(from, to);
}

int renameat(int at, const char *from, int there, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    REFUSE(fault_path("rename", there, to, NEEDS_SPACE));
    return real(at, from, there, to);
}

#define ON_PATH(name, need) \
    int name(const char *path) { \
        REAL(int, #name, const char *); \
        REFUSE(fault_path(#name, AT_FDCWD, path, need)); \
        return real(path); \
    }
ON_PATH(unlink, NEEDS_NONE)
ON_PATH(rmdir, NEEDS_NONE)

int unlinkat(int at, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    REFUSE(fault_path("unlink", at, path, NEEDS_NONE));
    return real(at, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    REFUSE(fault_path("mkdir", AT_FDCWD, path, NEEDS_SPACE));
    return real(path, mode);
}

int mkdirat(int at, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    REFUSE(fault_path("mkdir", at, path, NEEDS_SPACE));
    return real(at, path, mode);
}

int chmod(const char *path, mode_t mode) {
    REAL(int, "chmod", const char *, mode_t);
    REFUSE(fault_path("chmod", AT_FDCWD, path, NEEDS_NONE));
    return real(path, mode);
}

int fchmodat(int at, const char *path, mode_t mode, int flags) {
    REAL(int, "fchmodat", int, const char *, mode_t, int);
    REFUSE(fault_path("chmod", at, path, NEEDS_NONE));
    return real(at, path, mode, flags);
}

int fchmod(int fd, mode_t mode) {
    REAL(int, "fchmod", int, mode_t);
    REFUSE(fault_file("chmod", fd, NEEDS_NONE, NULL, NULL));
    return real(fd, mode);
}
