/* Makes system calls on files under one folder fail, for the fault campaign; loaded by LD_PRELOAD.
 *
 * fault_set() arms it: from the n-th call of a kind on, either calls fail with an error number, or the process gets
 * a signal, or a file is renamed away, or the clock jumps back. Unarmed, it only counts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

enum { OPEN = 1, WRITE = 2, READ = 4, RENAME = 8, LOCK = 16 };

static char folder[4096];
static char vanish_from[4096], vanish_to[4096];
static int kinds, error_number, signal_number, jump;
static long first, last, count;
static volatile int busy;

void fault_set(const char *under, int which, long from, long to, int number, int sig, const char *away, int back) {
    strncpy(folder, under, sizeof folder - 1);
    kinds = which, first = from, last = to, error_number = number, signal_number = sig, jump = 0, count = 0;
    vanish_from[0] = 0;
    if (away[0]) {
        strncpy(vanish_from, away, sizeof vanish_from - 1);
        snprintf(vanish_to, sizeof vanish_to, "%s.away", away);
    }
    if (back) jump = -back; /* armed: becomes positive at the first hit */
}

long fault_count(void) { return count; }

static int hits(int kind, const char *path) {
    if (!(kinds & kind) || busy || !folder[0] || path == NULL || strncmp(path, folder, strlen(folder))) return 0;
    long number = ++count;
    if (first == 0 || number < first || number > last) return 0;
    busy = 1;
    if (number == first) {
        if (vanish_from[0]) REAL(rename)(vanish_from, vanish_to);
        if (jump < 0) jump = -jump;
        if (signal_number) kill(getpid(), signal_number);
    }
    busy = 0;
    if (error_number == 0) return 0;
    errno = error_number;
    return 1;
}

static int hits_fd(int kind, int fd) {
    if (!(kinds & kind) || busy || !folder[0]) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return hits(kind, path);
}

static int is_writing(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); }

static const char *absolute(const char *path, char *buffer) {
    if (path == NULL || path[0] == '/') return path;
    if (getcwd(buffer, 2048) == NULL) return path;
    size_t length = strlen(buffer);
    snprintf(buffer + length, 4096 - length, "/%s", path);
    return buffer;
}

#define OPENER(name)                                                                                    \
    int name(const char *path, int flags, ...) {                                                        \
        char buffer[4096];                                                                              \
        va_list arguments;                                                                              \
        va_start(arguments, flags);                                                                     \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(arguments, mode_t) : 0;                  \
        va_end(arguments);                                                                              \
        if (hits(is_writing(flags) ? OPEN : READ, absolute(path, buffer))) return -1;                   \
        return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name))(path, flags, mode);           \
    }
OPENER(open)
OPENER(open64)

ssize_t write(int fd, const void *data, size_t size) { return hits_fd(WRITE, fd) ? -1 : REAL(write)(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return hits_fd(WRITE, fd) ? -1 : REAL(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    return hits_fd(WRITE, fd) ? -1 : REAL(pwrite64)(fd, data, size, at);
}
int fsync(int fd) { return hits_fd(WRITE, fd) ? -1 : REAL(fsync)(fd); }
int posix_fallocate(int fd, off_t at, off_t size) {
    return hits_fd(WRITE, fd) ? errno : REAL(posix_fallocate)(fd, at, size);
}
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    return hits_fd(WRITE, fd) ? errno : REAL(posix_fallocate64)(fd, at, size);
}
ssize_t read(int fd, void *data, size_t size) { return hits_fd(READ, fd) ? -1 : REAL(read)(fd, data, size); }
ssize_t pread(int fd, void *data, size_t size, off_t at) {
    return hits_fd(READ, fd) ? -1 : REAL(pread)(fd, data, size, at);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
    return hits_fd(READ, fd) ? -1 : REAL(pread64)(fd, data, size, at);
}
int rename(const char *from, const char *to) {
    char buffer[4096];
    return hits(RENAME, absolute(to, buffer)) ? -1 : REAL(rename)(from, to);
}
int flock(int fd, int operation) {
    return hits_fd(LOCK, fd) ? -1 : ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, operation);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    if (clock == CLOCK_REALTIME && jump > 0) now->tv_sec -= jump;
    return result;
}
