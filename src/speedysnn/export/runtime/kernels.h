/* What all networks share: whole numbers alone, no memory but what the caller gives. */
#ifndef KERNELS_H
#define KERNELS_H
#include <stddef.h>
#include <stdint.h>

typedef struct {
    int32_t channels, height, width;                /* of the input */
    int32_t out_channels, out_height, out_width;    /* of the output */
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
    int32_t groups, shift;
} conv_shape;

typedef struct {
    int32_t size[3], out[3];      /* three axes, the last one innermost */
    const int32_t *first[3];      /* first position of every window, NULL for an axis that stays */
    const int32_t *stop[3];       /* last position + 1 */
    int32_t step[3];              /* distance of the positions in a window */
} pool_shape;

typedef struct {
    int32_t size, period;         /* neurons; tables repeat after `period` of them */
    int32_t timesteps, lookahead, highest, least, most;
    int32_t is_signed, ternary, powers;
    const int32_t *threshold, *start, *bias;
    int32_t threshold_period, start_period, bias_period;
} cell_shape;

static inline int64_t floor_divide(int64_t a, int64_t b)
{
    int64_t whole = a / b;
    return whole * b > a ? whole - 1 : whole;
}

/* The signed power of two nearest to u - 1/2, from floor(2 u): up to `most`, or down to -`sent`. */
static inline int64_t nearest_power(int64_t halves, int64_t most, int64_t sent)
{
    int64_t far = halves < 0 ? -halves : halves - 1, limit = halves < 0 && sent < most ? sent : most;
    int64_t size = 0, power = 1;
    while (power <= limit && 2 * far >= (power == 1 ? 2 : 3 * power)) {
        size = power;
        power *= 2;
    }
    return halves < 0 ? -size : size;
}

static inline int64_t between(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

static inline void clear(int32_t *values, int32_t size)
{
    int32_t i;
    for (i = 0; i < size; i++) values[i] = 0;
}

static inline void scale_up(int32_t *values, int32_t size, int32_t shift)
{
    int32_t i, factor = (int32_t)1 << shift;
    for (i = 0; i < size; i++) values[i] *= factor;
}

static inline void negate(int32_t *values, int32_t size)
{
    int32_t i;
    for (i = 0; i < size; i++) values[i] = -values[i];
}

/* The increase of what was reached since the step before. */
static inline void increase(int32_t *reached, int32_t *before, int32_t size)
{
    int32_t i;
    for (i = 0; i < size; i++) {
        int32_t now = reached[i];
        reached[i] = now - before[i];
        before[i] = now;
    }
}
#endif
