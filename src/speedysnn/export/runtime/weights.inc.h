/* Layers with weights, driven by events: an input that is zero costs one comparison. SOURCE and WEIGHT are types. */

static inline void WEIGHTED(conv)(const conv_shape *s, const SOURCE *input, const WEIGHT *weights, int32_t *sums)
{
    int32_t in_group = s->channels / s->groups, out_group = s->out_channels / s->groups;
    int32_t y, x, c, ky, kx, o;
    clear(sums, s->out_channels * s->out_height * s->out_width);
    for (y = 0; y < s->height; y++) {
        for (x = 0; x < s->width; x++) {
            for (c = 0; c < s->channels; c++) {
                int32_t value = (int32_t)input[(y * s->width + x) * s->channels + c];
                int32_t group = c / in_group;
                if (value == 0) continue;
                for (ky = 0; ky < s->kernel_height; ky++) {
                    int32_t row = y + s->padding_y - ky * s->dilation_y;
                    if (row < 0 || row % s->stride_y != 0 || row / s->stride_y >= s->out_height) continue;
                    row /= s->stride_y;
                    for (kx = 0; kx < s->kernel_width; kx++) {
                        int32_t column = x + s->padding_x - kx * s->dilation_x;
                        const WEIGHT *w = weights + ((c * s->kernel_height + ky) * s->kernel_width + kx) * out_group;
                        int32_t *sum;
                        if (column < 0 || column % s->stride_x != 0 || column / s->stride_x >= s->out_width) continue;
                        column /= s->stride_x;
                        sum = sums + (row * s->out_width + column) * s->out_channels + group * out_group;
                        for (o = 0; o < out_group; o++) sum[o] += value * (int32_t)w[o];
                    }
                }
            }
        }
    }
    if (s->shift) scale_up(sums, s->out_channels * s->out_height * s->out_width, s->shift);
}

static inline void WEIGHTED(linear)(int32_t rows, int32_t in, int32_t out, int32_t shift, const SOURCE *input,
                                    const WEIGHT *weights, int32_t *sums)
{
    int32_t r, i, o;
    clear(sums, rows * out);
    for (r = 0; r < rows; r++) {
        for (i = 0; i < in; i++) {
            int32_t value = (int32_t)input[r * in + i];
            const WEIGHT *w = weights + i * out;
            if (value == 0) continue;
            for (o = 0; o < out; o++) sums[r * out + o] += value * (int32_t)w[o];
        }
    }
    if (shift) scale_up(sums, rows * out, shift);
}
