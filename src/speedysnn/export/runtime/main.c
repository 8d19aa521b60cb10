/* Reads images as raw bytes (channels, height, width; events step after step) and prints a line of logits for each. */
#include <inttypes.h>
#include <stdio.h>
#include "net.h"

static uint8_t image[NET_INPUT];
static int32_t logits[NET_OUTPUTS];

int main(void)
{
    size_t got;
    int i;
    while ((got = fread(image, 1, NET_INPUT, stdin)) == NET_INPUT) {
        net_run(image, logits);
        for (i = 0; i < NET_OUTPUTS; i++) printf("%s%" PRId32, i ? " " : "", logits[i]);
        printf("\n");
    }
    if (got != 0) {
        fprintf(stderr, "net: the last image has %lu of %lu bytes\n", (unsigned long)got, (unsigned long)NET_INPUT);
        return 1;
    }
    return ferror(stdin) || fflush(stdout) ? 1 : 0;
}
