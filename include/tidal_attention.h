/* tidal's sketch attention for others' caches: a C interface to the engine's kernels, on the CPU and on CUDA.
 *
 * A block is 64 consecutive positions of a sequence. A cache holds, of each block and KV head, a tile of 64 rows
 * [K head_dim | V head_dim], and beside them a sketch of its keys: each element in 1, 2 or 4 bits, with a minimum and a
 * step a channel. A token that is decoded scores all positions of full blocks by their sketches and those of the block
 * still filling by their keys, selects a set of positions for each KV head (its query heads' softmax probabilities
 * added up; the `budget` highest, and the block still filling whole) and attends to these alone. A row whose context is
 * at most the budget gets full attention.
 *
 * Every function returns TIDAL_ATTENTION_OK or another code and never exits, throws or prints; the sentence that goes
 * with the last code of this thread is tidal_attention_error(). What a row gets depends neither on the rows beside it
 * nor on the number of threads. A handle is used by one thread at a time; several handles may be used at once.
 *
 * Memory. On the CPU every pointer is to host memory, `stream` is of no account, and work is done when a function
 * returns. On CUDA elements and tables are in memory of the handle's device, elements at multiples of 16 bytes and with
 * strides that are multiples of 8; work is put on `stream` (a cudaStream_t; null: the default stream) and nothing
 * waits, so every call may be captured into a graph, and a replay reads the tables that are there then. A handle's
 * work is all on one stream, or ordered as if it were: its working memory is shared. */
#ifndef TIDAL_ATTENTION_H
#define TIDAL_ATTENTION_H

#include <stdint.h>

#if defined(__GNUC__)
#define TIDAL_ATTENTION_API __attribute__((visibility("default")))
#else
#define TIDAL_ATTENTION_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header. It grows with every change of a struct or of what something means; a library refuses options of
 * another version. */
#define TIDAL_ATTENTION_VERSION 1
#define TIDAL_ATTENTION_BLOCK 64 /* positions of a block */

enum { /* codes */
       TIDAL_ATTENTION_OK = 0,
       TIDAL_ATTENTION_INVALID = 1,     /* an argument breaks the limits that are given beside it */
       TIDAL_ATTENTION_UNSUPPORTED = 2, /* a shape, type or device that this build or machine has no kernels for */
       TIDAL_ATTENTION_NO_MEMORY = 3,   /* there is not enough memory */
       TIDAL_ATTENTION_FAILED = 4       /* the device reported an error */
};

enum { TIDAL_ATTENTION_CPU = 0, TIDAL_ATTENTION_CUDA = 1 };     /* devices */
enum { TIDAL_ATTENTION_BF16 = 0, TIDAL_ATTENTION_FLOAT32 = 1 }; /* dtypes; float32 on the CPU alone */

typedef struct tidal_attention tidal_attention;

typedef struct tidal_attention_options {
  int32_t version;      /* TIDAL_ATTENTION_VERSION */
  int32_t device;       /* TIDAL_ATTENTION_CPU or TIDAL_ATTENTION_CUDA */
  int32_t device_index; /* of CUDA's devices, >= 0; of no account on the CPU */
  int32_t threads;      /* on the CPU, 1 to 1024; of no account on CUDA */
  int32_t dtype;        /* of rows in the cache, queries, keys, values and outputs */
  int32_t heads;        /* query heads, 1 to 1024, a multiple of kv_heads */
  int32_t kv_heads;     /* >= 1 */
  int32_t head_dim;     /* of q, k and v: a multiple of 16 up to 512 on the CPU; 64 or 128 on CUDA */
  int32_t sketch_bits;  /* 1, 2 or 4 */
  int32_t budget;       /* most positions of a set, 1 to 2^24; the block still filling comes on top */
  int32_t max_context;  /* most positions of a sequence, 1 to 2^24: working memory is made for so many */
  int32_t max_rows;     /* most rows of a call of tidal_attention_attend(), 1 to 65536 */
  float scale;          /* factor on q.k before the softmax, > 0; 0: 1 / sqrt(head_dim) */
} tidal_attention_options;

/* A layer's cache. Both strides are multiples of 16, both pointers are, and neither range may overlap the other; rows
 * and sketches may alternate in one range (a tile with its sketch behind it, say). */
typedef struct tidal_attention_cache {
  void* rows;            /* tile of block b and KV head h at rows + (b * kv_heads + h) * tile_stride:
                            64 rows [K head_dim | V head_dim] of dtype, one behind the other */
  int64_t tile_stride;   /* bytes, >= 64 * 2 * head_dim * size of dtype */
  void* sketches;        /* sketch of block b and KV head h at sketches + (b * kv_heads + h) * sketch_stride */
  int64_t sketch_stride; /* bytes, >= tidal_attention_sketch_bytes() */
  int32_t blocks;        /* of the cache, >= 1: ids go from 0 to blocks - 1 */
} tidal_attention_cache;

/* The version of the library, as TIDAL_ATTENTION_VERSION. */
TIDAL_ATTENTION_API int32_t tidal_attention_version(void);
/* What the last call of this thread that did not return TIDAL_ATTENTION_OK had to say, one sentence; "" before there
 * was one. Stays until the thread's next such call. */
TIDAL_ATTENTION_API const char* tidal_attention_error(void);
/* Whether this build has a device's kernels and the machine such a device: 1 or 0. */
TIDAL_ATTENTION_API int32_t tidal_attention_has_device(int32_t device);
/* Bytes of the sketch of one block and KV head; 0 where head_dim or bits are not as tidal_attention_options has them.
 */
TIDAL_ATTENTION_API int64_t tidal_attention_sketch_bytes(int32_t head_dim, int32_t bits);
/* Room for a set in `positions` of tidal_attention_attend(): min(budget + 63, max_context). */
TIDAL_ATTENTION_API int32_t tidal_attention_most_selected(const tidal_attention* attention);

/* A handle, with all working memory that its calls will need. *attention is null when it fails. */
TIDAL_ATTENTION_API int32_t tidal_attention_create(const tidal_attention_options* options, tidal_attention** attention);
/* Frees a handle; null is none. No work of its calls may be on a stream any more. */
TIDAL_ATTENTION_API void tidal_attention_free(tidal_attention* attention);

/* Writes K and V of `rows` positions into the cache, and the sketches of the blocks whose last position is among them:
 * their other rows must be there, or come with this call.
 *   key, value  [rows, kv_heads, head_dim] of dtype; a row's elements follow each other, rows are key_stride and
 *               value_stride elements apart (>= kv_heads * head_dim)
 *   slots       [rows] int64: block * 64 + offset in the block, below blocks * 64, no two alike; below 0: the row is
 *               left out (CUDA checks none of them)
 *   rows        0 to 2^24 */
TIDAL_ATTENTION_API int32_t tidal_attention_append(tidal_attention* attention, const tidal_attention_cache* cache,
                                                   int32_t rows, const void* key, int64_t key_stride, const void* value,
                                                   int64_t value_stride, const int64_t* slots, void* stream);

/* Writes the sketches of `count` full blocks, 0 to 2^24, for rows that came into the cache by other ways.
 *   blocks      [count] int32, each below cache->blocks (CUDA checks none of them) */
TIDAL_ATTENTION_API int32_t tidal_attention_sketch(tidal_attention* attention, const tidal_attention_cache* cache,
                                                   int32_t count, const int32_t* blocks, void* stream);

/* Attention of `rows` tokens, each the last one of its sequence and already in the cache, with the sketches of all full
 * blocks before it.
 *   q, out        [rows, heads, head_dim] of dtype; rows are q_stride and out_stride elements apart, at least
 *                 heads * head_dim; query head h reads KV head h / (heads / kv_heads); `out` may not overlap q
 *   block_table   [rows, table_stride] int32: the blocks of a row's sequence in order, as many as its context needs;
 *                 each below cache->blocks (CUDA checks none of them); rows * table_stride is below 2^31
 *   contexts      [rows] int32: positions of a row's sequence, its own included, 1 to max_context (CUDA checks none of
 *                 them). On CUDA 0, too: a row of padding, whose first block is any one and whose output is of no use
 *   positions     null, or [rows, kv_heads, tidal_attention_most_selected()] int32, receives each set, ascending
 *   counts        null where positions is, else [rows, kv_heads] int32, receives how many there are; 0 where the row
 *                 read its whole context
 *   rows          0 to max_rows */
TIDAL_ATTENTION_API int32_t tidal_attention_attend(tidal_attention* attention, const tidal_attention_cache* cache,
                                                   int32_t rows, const void* q, int64_t q_stride,
                                                   const int32_t* block_table, int64_t table_stride,
                                                   const int32_t* contexts, void* out, int64_t out_stride,
                                                   int32_t* positions, int32_t* counts, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TIDAL_ATTENTION_H */
