/* Loaded before libc (LD_PRELOAD) into a process of a run: makes storage slow, and the wall clock wrong.

   DRILL_CONTROL  a file of two doubles that the drill writes while the run goes on:
                  seconds that each write below DRILL_SLOW_BELOW takes longer; seconds that the wall clock is ahead.
   DRILL_SLOW_BELOW  a directory; empty or not set: no write is slow.

   Patching Python would not do: checkpoints are written by TensorStore's threads, in C++. Waits until a time of day are
   put right, so that only what is read off the clock is wrong, as on a machine whose clock is wrong. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static volatile double *control;
static const char *slow_below = "";

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("DRILL_CONTROL"), *below = getenv("DRILL_SLOW_BELOW");
    if (below) slow_below = below;
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return;
    void *page = mmap(NULL, 2 * sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) control = page;
    close(file);
}

#define REAL(result, name, ...)                                                     \
    static result (*real)(__VA_ARGS__);                                             \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static void delay(int file) {
    double seconds = control ? control[0] : 0;
    if (seconds <= 0 || !*slow_below) return;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    if (strncmp(path, slow_below, strlen(slow_below))) return;
    struct timespec pause = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    nanosleep(&pause, NULL);
}

ssize_t write(int file, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    delay(file);
    return real(file, data, size);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    delay(file);
    return real(file, data, size, at);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    delay(file);
    return real(file, data, size, at);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    delay(file);
    return real(file, parts, count);
}

int fsync(int file) {
    REAL(int, fsync, int);
    delay(file);
    return real(file);
}

int fdatasync(int file) {
    REAL(int, fdatasync, int);
    delay(file);
    return real(file);
}

static struct timespec ahead(struct timespec t, double seconds) {
    long long nanoseconds = t.tv_sec * 1000000000LL + t.tv_nsec + (long long)(seconds * 1e9);
    return (struct timespec){nanoseconds / 1000000000LL, nanoseconds % 1000000000LL};
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int failed = real(clock, t);
    if (!failed && control && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) *t = ahead(*t, control[1]);
    return failed;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    *t = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}

/* A deadline by the wrong clock, as the kernel must be told it. Times since boot are small, and left alone. */
static struct timespec right(const struct timespec *deadline) {
    return control && deadline->tv_sec > 1000000000 ? ahead(*deadline, -control[1]) : *deadline;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict deadline) {
    REAL(int, pthread_cond_timedwait, pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec then = right(deadline);
    return real(condition, mutex, &then);
}

long syscall(long number, ...) {
    REAL(long, syscall, long, ...);
    long a[6];
    va_list more;
    va_start(more, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(more, long);
    va_end(more);
    struct timespec then;
    if (number == SYS_futex && a[3] && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && (a[1] & FUTEX_CLOCK_REALTIME)) {
        then = right((const struct timespec *)a[3]);
        a[3] = (long)&then;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
