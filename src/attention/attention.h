// What is behind include/tidal_attention.h: one layer's attention on one kind of device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "backend/batch.h"
#include "core/error.h"
#include "tidal_attention.h"

/// A handle. Arguments are within the limits that the header gives, but for what is in the tables.
struct tidal_attention {
 public:
  explicit tidal_attention(const tidal_attention_options& given) : options(given) {}
  virtual ~tidal_attention() = default;
  tidal_attention(const tidal_attention&) = delete;
  tidal_attention& operator=(const tidal_attention&) = delete;

  struct Append {
    int rows;
    const void *key, *value;
    int64_t key_stride, value_stride;
    const int64_t* slots;
  };
  struct Attend {
    int rows;
    const void* q;
    int64_t q_stride;
    const int32_t* block_table;
    int64_t table_stride;
    const int32_t* contexts;
    void* out;
    int64_t out_stride;
    int32_t *positions, *counts;
  };
  virtual void append(const tidal_attention_cache& cache, const Append& append, void* stream) = 0;
  virtual void sketch(const tidal_attention_cache& cache, int count, const int32_t* blocks, void* stream) = 0;
  virtual void attend(const tidal_attention_cache& cache, const Attend& attend, void* stream) = 0;

  const tidal_attention_options options;
};

namespace tidal {

/// An Error that comes with a code of the interface.
class AttentionError : public Error {
 public:
  AttentionError(int32_t code, const std::string& sentence) : Error(sentence), code_(code) {}
  int32_t code() const { return code_; }

 private:
  int32_t code_;
};

/// The cache as kernels see it, with the handle's one kind of sketches.
KvLayer layer_of(const tidal_attention_options& options, const tidal_attention_cache& cache);
/// A row's policy: by KV heads, probabilities added up, nothing reserved but the token itself.
Policy policy_of(const tidal_attention_options& options);
/// What kernels need to know of the model.
Hyperparameters shape_of(const tidal_attention_options& options);
/// min(budget + 63, max_context).
int most_selected_of(const tidal_attention_options& options);
/// Factor on queries that makes the kernels' scale, 1 / sqrt(head_dim), that of the options.
float query_factor(const tidal_attention_options& options);

/// Throws Error where there is not enough memory.
std::unique_ptr<tidal_attention> make_cpu_attention(const tidal_attention_options& options);
/// The same; AttentionError in a build without CUDA, without such a device, and for shapes that it has no kernels for.
std::unique_ptr<tidal_attention> make_cuda_attention(const tidal_attention_options& options);
bool has_cuda_attention();

}  // namespace tidal
