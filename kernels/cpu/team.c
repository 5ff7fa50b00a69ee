/* How many threads a piece of work gets: those asked for, unless other programs hold the cores.
 *
 * A step is dozens of short parallel pieces, and at the end of each the caller waits for its
 * helpers. A helper whose core another program holds comes milliseconds late to microseconds of
 * work. When one does, the caller works alone for a while and then tries again; results do not
 * depend on the number of threads.
 */
#include <stdatomic.h>
#include <time.h>

#include "vector.h"

#define LATE (300 * 1000) /* ns from the start of a piece to a helper's: woken ones take 60 µs */
#define REST (200 * 1000 * 1000) /* ns to work alone for */

static _Atomic int64_t
    alone_until; /* what was seen of the machine; every engine's helpers share it */

EXPORT int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

EXPORT int team(long work, long least, int threads) {
    return work < least || threads < 2 || now() < alone_until ? 1 : threads;
}

EXPORT void helper_came(int64_t begin) {
    const int64_t time = now();
    if (time - begin > LATE) alone_until = time + REST;
}
