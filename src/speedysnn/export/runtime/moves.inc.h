/* What moves, adds up or compares values of type SOURCE. */

static inline void MOVED(widen)(const SOURCE *input, int32_t *out, int32_t size)
{
    int32_t i;
    for (i = 0; i < size; i++) out[i] = (int32_t)input[i];
}

static inline void MOVED(total)(const SOURCE *input, int32_t *sum, int32_t size, int32_t times)
{
    int32_t i;
    for (i = 0; i < size; i++) sum[i] += times * (int32_t)input[i];
}

static inline void MOVED(gain)(const SOURCE *input, int32_t *out, int32_t size, const int16_t *factor, int32_t period,
                               int32_t shift)
{
    int32_t i, c, up = (int32_t)1 << shift;
    for (i = 0; i < size; i += period)
        for (c = 0; c < period; c++) out[i + c] = (int32_t)input[i + c] * (int32_t)factor[c] * up;
}

/* Position -1 stands for a zero. */
static inline void MOVED(gather)(const SOURCE *input, int32_t *out, int32_t size, const int32_t *index)
{
    int32_t i;
    for (i = 0; i < size; i++) out[i] = index[i] < 0 ? 0 : (int32_t)input[index[i]];
}

static inline void MOVED(place)(const SOURCE *input, int32_t *out, int32_t blocks, int32_t length, int32_t stride)
{
    int32_t b, i;
    for (b = 0; b < blocks; b++)
        for (i = 0; i < length; i++) out[b * stride + i] = (int32_t)input[b * length + i];
}

static inline void MOVED(pool)(const pool_shape *s, const SOURCE *input, int32_t *out, int32_t greatest)
{
    int32_t o[3], i[3], first[3], stop[3], a, position = 0;
    for (o[0] = 0; o[0] < s->out[0]; o[0]++) {
        for (o[1] = 0; o[1] < s->out[1]; o[1]++) {
            for (o[2] = 0; o[2] < s->out[2]; o[2]++) {
                int32_t found = 0, any = 0;
                for (a = 0; a < 3; a++) {
                    first[a] = s->first[a] ? s->first[a][o[a]] : o[a];
                    stop[a] = s->first[a] ? s->stop[a][o[a]] : o[a] + 1;
                }
                for (i[0] = first[0]; i[0] < stop[0]; i[0] += s->step[0]) {
                    for (i[1] = first[1]; i[1] < stop[1]; i[1] += s->step[1]) {
                        for (i[2] = first[2]; i[2] < stop[2]; i[2] += s->step[2]) {
                            int32_t value = (int32_t)input[(i[0] * s->size[1] + i[1]) * s->size[2] + i[2]];
                            if (!greatest) found += value;
                            else if (!any || value > found) found = value;
                            any = 1;
                        }
                    }
                }
                out[position++] = found;
            }
        }
    }
}
