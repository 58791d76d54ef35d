/* A disk without room for a server, wherever it runs and as whoever: loaded before the C library
 * (LD_PRELOAD), it refuses whatever would make a file longer, with ENOSPC as the kernel does.
 * What is overwritten in place goes through, as it does on a full disk.
 *
 * PYJOBS_FULL_DISK names a folder. While a file "base" is in it, files with "/base/" in their path
 * cannot grow; while "pg_wal" is, those with "/pg_wal/".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *const PARTS[] = {"base", "pg_wal"};

static int no_room(int fd, off_t end)
{
    const char *folder = getenv("PYJOBS_FULL_DISK");
    char link[64], path[4096], part[64], flag[4096];
    struct stat info;
    ssize_t length;
    int before = errno, found = 0;

    if (folder == NULL || fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || end <= info.st_size)
        goto done;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        goto done;
    path[length] = 0;
    for (size_t n = 0; n < sizeof PARTS / sizeof *PARTS; n++) {
        snprintf(part, sizeof part, "/%s/", PARTS[n]);
        snprintf(flag, sizeof flag, "%s/%s", folder, PARTS[n]);
        if (strstr(path, part) != NULL && access(flag, F_OK) == 0)
            found = 1;
    }
done:
    errno = before;
    return found;
}

static off_t total(const struct iovec *iov, int count)
{
    off_t sum = 0;
    for (int n = 0; n < count; n++)
        sum += (off_t) iov[n].iov_len;
    return sum;
}

#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

#define PWRITE(name)                                                                  \
    ssize_t name(int fd, const void *data, size_t size, off64_t at)                   \
    {                                                                                 \
        if (no_room(fd, at + (off_t) size)) { errno = ENOSPC; return -1; }            \
        return REAL(name)(fd, data, size, at);                                        \
    }
#define PWRITEV(name)                                                                 \
    ssize_t name(int fd, const struct iovec *iov, int count, off64_t at)              \
    {                                                                                 \
        if (no_room(fd, at + total(iov, count))) { errno = ENOSPC; return -1; }       \
        return REAL(name)(fd, iov, count, at);                                        \
    }
#define ALLOCATE(name)                                                                \
    int name(int fd, off64_t at, off64_t size)                                        \
    {                                                                                 \
        return no_room(fd, at + size) ? ENOSPC : REAL(name)(fd, at, size);            \
    }

PWRITE(pwrite)
PWRITE(pwrite64)
PWRITEV(pwritev)
PWRITEV(pwritev64)
ALLOCATE(posix_fallocate)
ALLOCATE(posix_fallocate64)

ssize_t write(int fd, const void *data, size_t size)
{
    off_t at = lseek(fd, 0, SEEK_CUR);
    if (at >= 0 && no_room(fd, at + (off_t) size)) { errno = ENOSPC; return -1; }
    return REAL(write)(fd, data, size);
}
