#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "core/error.h"
#include "model/family.h"
#include "model/model.h"
#include "model/rope.h"

namespace tidal {
namespace {

struct Shape {
  const char* name;
  const char* architecture;
  int layers, width, heads, kv_heads, head_dim, ffn, vocab, context;
  double rope_base;
  Experts experts = {};
  int window = 0;
  DeltaNet delta = {};     // of three layers in four
  KvShape window_kv = {};  // where layers with a window have their own
  int layer_input = 0, shared_kv_layers = 0;
};

// From the models' config.json.
constexpr Shape kShapes[] = {
    {"smollm2-135m", "llama", 30, 576, 9, 3, 64, 1536, 49152, 8192, 100000},
    {"smollm2-360m", "llama", 32, 960, 15, 5, 64, 2560, 49152, 8192, 100000},
    {"smollm2-1.7b", "llama", 24, 2048, 32, 32, 64, 8192, 49152, 8192, 130000},
    {"llama-2-7b", "llama", 32, 4096, 32, 32, 128, 11008, 32000, 4096, 10000},
    {"llama-3-8b", "llama", 32, 4096, 32, 8, 128, 14336, 128256, 131072, 500000},
    {"llama-3.2-1b", "llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 500000},
    {"llama-3.2-3b", "llama", 28, 3072, 24, 8, 128, 8192, 128256, 131072, 500000},
    {"mistral-7b", "llama", 32, 4096, 32, 8, 128, 14336, 32768, 32768, 1000000},
    {"qwen2.5-0.5b", "qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, 1000000},
    {"qwen2.5-1.5b", "qwen2", 28, 1536, 12, 2, 128, 8960, 151936, 32768, 1000000},
    {"qwen2.5-7b", "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 131072, 1000000},
    {"qwen3-0.6b", "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1000000},
    {"qwen3-4b", "qwen3", 36, 2560, 32, 8, 128, 9728, 151936, 40960, 1000000},
    {"qwen3-8b", "qwen3", 36, 4096, 32, 8, 128, 12288, 151936, 40960, 1000000},
    {"mixtral-8x7b", "llama", 32, 4096, 32, 8, 128, 14336, 32000, 32768, 1000000, {8, 2, 14336}},
    {"olmoe-1b-7b", "olmoe", 16, 2048, 16, 16, 128, 1024, 50304, 4096, 10000, {64, 8, 1024}},
    {"qwen1.5-moe-a2.7b", "qwen2moe", 24, 2048, 16, 16, 128, 5632, 151936, 8192, 1000000, {60, 4, 1408, 5632}},
    {"gemma2-2b", "gemma2", 26, 2304, 8, 4, 256, 9216, 256000, 8192, 10000, {}, 4096},
    {"gemma2-9b", "gemma2", 42, 3584, 16, 8, 256, 14336, 256000, 8192, 10000, {}, 4096},
    {"gemma2-27b", "gemma2", 46, 4608, 32, 16, 128, 36864, 256000, 8192, 10000, {}, 4096},
    {"gemma3-270m", "gemma3", 18, 640, 4, 1, 256, 2048, 262144, 32768, 1000000, {}, 512},
    {"gemma3-1b", "gemma3", 26, 1152, 4, 1, 256, 6912, 262144, 32768, 1000000, {}, 512},
    {"gemma3-4b", "gemma3", 34, 2560, 8, 4, 256, 10240, 262208, 131072, 1000000, {}, 1024},
    {"gemma3-12b", "gemma3", 48, 3840, 16, 8, 256, 15360, 262208, 131072, 1000000, {}, 1024},
    {"gemma3-27b", "gemma3", 62, 5376, 32, 16, 128, 21504, 262208, 131072, 1000000, {}, 1024},
    {"gpt-oss-20b", "gpt-oss", 24, 2880, 64, 8, 64, 2880, 201088, 131072, 150000, {32, 4, 2880}, 128},
    {"gpt-oss-120b", "gpt-oss", 36, 2880, 64, 8, 64, 2880, 201088, 131072, 150000, {128, 4, 2880}, 128},
    // From what is told of the models, not from their config.json.
    {"gemma4-31b", "gemma4", 60, 5376, 32, 4, 512, 21504, 262144, 262144, 1000000, {}, 1024, {}, {16, 256}},
    {"gemma4-26b-a4b",
     "gemma4",
     30,
     2816,
     16,
     2,
     512,
     2112,
     262144,
     262144,
     1000000,
     {128, 8, 704, 2112},
     1024,
     {},
     {8, 256}},
    {"gemma4-e4b", "gemma4", 42, 2560, 8, 2, 512, 10240, 262144, 131072, 1000000, {}, 512, {}, {2, 256}, 256, 18},
    // Heads and sizes of Qwen3.5 from its config.json, too; libllama knows the two by their 64 and 40 layers.
    {"qwen3.5-27b", "qwen35", 64, 5120, 24, 4, 256, 17408, 248320, 262144, 10000000, {}, 0, {4, 128, 16, 48}},
    {"qwen3.5-35b-a3b",
     "qwen35moe",
     40,
     2048,
     16,
     2,
     256,
     0,
     248320,
     262144,
     10000000,
     {256, 8, 512, 512},
     0,
     {4, 128, 16, 32}},
    {"qwen3-30b-a3b", "qwen3moe", 48, 2048, 32, 4, 128, 6144, 151936, 40960, 1000000, {128, 8, 768}},
};

}  // namespace

Hyperparameters known_shape(const std::string& name) {
  std::string names;
  for (const Shape& shape : kShapes) {
    names += (names.empty() ? "" : ", ") + std::string(shape.name);
    if (name != shape.name) continue;
    Hyperparameters hp;
    hp.architecture = shape.architecture;
    hp.name = shape.name;
    hp.layers = shape.layers;
    hp.width = shape.width;
    hp.heads = shape.heads;
    hp.kv_heads = shape.kv_heads;
    hp.head_dim = shape.head_dim;
    hp.ffn = shape.ffn;
    hp.vocab = shape.vocab;
    hp.context = shape.context;
    const Family& family = family_of(hp);
    hp.experts = shape.experts;
    hp.experts.weights_sum_to_one = family.weights_sum_to_one;
    hp.experts.own_norms = hp.experts && family.expert_norms;
    hp.window_kv = shape.window_kv;
    hp.layer_input = shape.layer_input;
    hp.shared_kv_layers = shape.shared_kv_layers;
    hp.value_norm = family.value_norm;
    hp.logit_cap = family.usual_logit_cap;
    hp.score_cap = family.usual_score_cap;
    if (family.hybrid) {
      hp.delta = shape.delta;
      hp.gated_attention = true;
      for (int l = 0; l < hp.layers; ++l) hp.recurrent.push_back((l + 1) % 4 != 0);
    }
    const int rotated = family.hybrid ? hp.head_dim / 4 : hp.head_dim;
    std::vector<float> divisors;
    if (family.kinds) {  // of which a quarter of the pairs rotates
      divisors.assign(static_cast<size_t>(rotated / 2), 1e30f);
      std::fill_n(divisors.begin(), rotated / 8, 1.0f);
    }
    hp.rope = make_rope(family.pairing, rotated, shape.rope_base, divisors, {});
    hp.post_norms = family.post_norms;
    hp.activation = family.activation;
    hp.sink_logits = family.sink_logits;
    if (family.embedding_root) hp.embedding_scale = std::sqrt(static_cast<float>(hp.width));
    for (int l = 0; shape.window > 0 && l < hp.layers; ++l) {
      hp.windows.push_back(has_window(l, family.window_pattern) ? shape.window : 0);
    }
    if (family.window_rope == Family::WindowRope::OwnUnscaled) {
      const int window_dim = hp.window_kv ? hp.window_kv.head_dim : hp.head_dim;
      hp.window_rope = make_rope(family.pairing, window_dim, 10000, {}, {});
    }
    return hp;
  }
  fail("shape: '{}' is not known, expected one of {}", name, names);
}

}  // namespace tidal
