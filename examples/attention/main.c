/* Sketch attention over a cache of one's own, in C: 1,000 positions of one KV head, one token that reads at most 64 of
 * them and the block still filling. */
#include <stdio.h>
#include <stdlib.h>
#include <tidal_attention.h>

enum { kHeads = 4, kDim = 64, kPositions = 1000, kBlocks = 16, kTile = 64 * 2 * kDim };

static int failed(void) {
  fprintf(stderr, "attention: %s\n", tidal_attention_error());
  return 1;
}

int main(void) {
  tidal_attention_options options = {0};
  options.version = TIDAL_ATTENTION_VERSION;
  options.device = TIDAL_ATTENTION_CPU;
  options.threads = 2;
  options.dtype = TIDAL_ATTENTION_FLOAT32;
  options.heads = kHeads;
  options.kv_heads = 1;
  options.head_dim = kDim;
  options.sketch_bits = 2;
  options.budget = 64;
  options.max_context = kBlocks * 64;
  options.max_rows = 1;
  tidal_attention* attention;
  if (tidal_attention_create(&options, &attention) != TIDAL_ATTENTION_OK) return failed();

  const int64_t sketch_bytes = tidal_attention_sketch_bytes(kDim, 2);
  tidal_attention_cache cache = {calloc(kBlocks * kTile, sizeof(float)), kTile * sizeof(float),
                                 calloc(kBlocks, (size_t)sketch_bytes), sketch_bytes, kBlocks};
  static float keys[kPositions * kDim], values[kPositions * kDim];
  static int64_t slots[kPositions];
  uint32_t random = 1;
  for (int p = 0; p < kPositions; ++p) {
    slots[p] = p; /* blocks in order */
    for (int d = 0; d < kDim; ++d) {
      random = random * 1664525 + 1013904223;
      keys[p * kDim + d] = (float)(random >> 8) / (1 << 23) - 1;
      values[p * kDim + d] = (float)p;
    }
  }
  /* A query that is ten times the key of position 321. */
  static float q[kHeads * kDim], out[kHeads * kDim];
  for (int i = 0; i < kHeads * kDim; ++i) q[i] = 10 * keys[321 * kDim + i % kDim];
  int32_t table[kBlocks], context = kPositions, positions[64 + 63], count = 0;
  for (int b = 0; b < kBlocks; ++b) table[b] = b;
  if (tidal_attention_append(attention, &cache, kPositions, keys, kDim, values, kDim, slots, NULL) ||
      tidal_attention_attend(attention, &cache, 1, q, kHeads * kDim, table, kBlocks, &context, out, kHeads * kDim,
                             positions, &count, NULL))
    return failed();
  printf("read %d of %d positions, the values say %.1f\n", count, kPositions, out[0]);
  tidal_attention_free(attention);
  free(cache.rows);
  free(cache.sketches);
  return 0;
}
