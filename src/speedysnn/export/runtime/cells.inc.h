/* Integrate-and-fire neurons with soft reset; STATE holds their state, SPIKE what they emit in a step. */

static inline void CELLS(begin)(const cell_shape *s, STATE *state, int32_t *count)
{
    int32_t i;
    for (i = 0; i < s->size; i++) {
        int64_t start = s->lookahead ? 0 : s->start[i % s->start_period];
        state[i] = (STATE)between(start, s->least, s->most);
        if (count) count[i] = 0;
    }
}

/* Adds the drive of one step; a state that would leave its range stays at the end of it. */
static inline void CELLS(arrive)(const cell_shape *s, const int32_t *drive, STATE *state)
{
    int32_t i, c;
    for (i = 0; i < s->size; i += s->bias_period)
        for (c = 0; c < s->bias_period; c++) {
            int64_t value = (int64_t)state[i + c] + drive[i + c] + s->bias[c];
            state[i + c] = (STATE)between(value, s->least, s->most);
        }
}

/* The spikes of step t = 1..T. */
static inline void CELLS(emit)(const cell_shape *s, int32_t t, STATE *state, int32_t *count, SPIKE *spikes)
{
    int32_t i, k = t + s->lookahead < s->timesteps ? t + s->lookahead : s->timesteps;
    for (i = 0; i < s->size; i++) {
        int64_t threshold = s->threshold[i % s->threshold_period], level = state[i], fired;
        if (s->lookahead) {
            threshold *= k;
            level = t * level + (int64_t)k * s->start[i % s->start_period] - threshold * count[i];
        }
        if (s->powers)
            fired = nearest_power(floor_divide(2 * level, threshold), s->highest, s->is_signed ? s->highest : count[i]);
        else if (s->highest == 1 && !s->is_signed) fired = level >= threshold;
        else fired = between(floor_divide(level, threshold), s->is_signed ? -s->highest : 0, s->highest);
        if (s->ternary && level < 0 && count[i] > 0) fired -= 1;
        if (count) count[i] += (int32_t)fired;
        if (!s->lookahead) state[i] = (STATE)(state[i] - fired * threshold);
        spikes[i] = (SPIKE)fired;
    }
}
