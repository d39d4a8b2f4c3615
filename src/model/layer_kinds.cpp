#include "model/layer_kinds.h"

#include <algorithm>

#include "backend/hyperparameters.h"
#include "core/error.h"

namespace tidal {
namespace {

constexpr const char* name_of_kind(bool window) { return window ? "with a window" : "that read the whole context"; }

/// KV heads of the layers of one kind; 0: there are none of it.
int read_kv_heads(const GgufFile& file, const Keys& keys, const Hyperparameters& hp, bool window) {
  const auto values = keys.integers("attention.head_count_kv", hp.layers);
  int heads = 0;
  for (int l = 0; l < hp.layers; ++l) {
    if ((hp.window(l) > 0) != window) continue;
    const int64_t own = values ? (*values)[static_cast<size_t>(l)] : hp.heads;
    if (own < 1 || own > hp.heads) {
      fail("{}: layer {} has {} KV heads, expected 1 to the {} attention heads", file.path(), l, own, hp.heads);
    }
    if (heads > 0 && own != heads) {
      fail("{}: layers {} have {} and {} KV heads, expected all of them to have as many", file.path(),
           name_of_kind(window), heads, own);
    }
    heads = static_cast<int>(own);
  }
  return heads;
}

void check_shared_kv(const GgufFile& file, const Hyperparameters& hp) {
  const int own = hp.layers - hp.shared_kv_layers;
  if (hp.shared_kv_layers == 0) return;
  if (own < 2) {
    fail("{}: {} of {} layers share the K and V of earlier ones, expected two or more with their own", file.path(),
         hp.shared_kv_layers, hp.layers);
  }
  // libllama takes those of the last layer and of the last but one, whatever they are.
  for (int l = own; l < hp.layers; ++l) {
    const int source = own - (hp.window(l) > 0 ? 2 : 1);
    if (hp.kv_layer(l) != source) {
      fail("{}: layer {} shares the K and V of layer {}, expected the last one of its kind that has its own",
           file.path(), l, source);
    }
  }
}

}  // namespace

int read_ffns(Keys& keys, int layers, Hyperparameters& hp) {
  const auto values = keys.integers("feed_forward_length", layers);
  if (!values) return 0;
  for (const int64_t value : *values) hp.ffns.push_back(keys.checked("feed_forward_length", value));
  const auto [least, most] = std::minmax_element(hp.ffns.begin(), hp.ffns.end());
  const int largest = *most;
  if (*least == largest) hp.ffns.clear();
  return largest;
}

void require_kinds(const GgufFile& file, Keys& keys, const Hyperparameters& hp) {
  for (const char* key :
       {"attention.key_length_swa", "attention.value_length_swa", "embedding_length_per_layer_input"}) {
    if (!file.integer(hp.architecture + "." + key)) keys.require(key);
  }
}

void read_kinds(const GgufFile& file, Keys& keys, Hyperparameters& hp) {
  const KvShape windows{.heads = read_kv_heads(file, keys, hp, true),
                        .head_dim = keys.size("attention.key_length_swa")};
  if (keys.size("attention.value_length_swa") != windows.head_dim) {
    fail("{}: keys and values of different head sizes are not supported", file.path());
  }
  hp.kv_heads = read_kv_heads(file, keys, hp, false);
  if (windows) hp.window_kv = windows;
  if (hp.kv_heads == 0) hp.kv_heads = windows.heads;
  hp.layer_input = keys.nonzero_or("embedding_length_per_layer_input", 0);
  constexpr int64_t kMostInputs = 1 << 20;
  if (int64_t{hp.layer_input} * hp.layers > kMostInputs) {
    fail("{}: {} layers with inputs of {} elements each are beyond any known model", file.path(), hp.layers,
         hp.layer_input);
  }
  hp.shared_kv_layers = keys.nonzero_or("attention.shared_kv_layers", 0);
  check_shared_kv(file, hp);
  if (hp.experts && !hp.ffns.empty()) {
    fail("{}: MLPs of different lengths beside experts are not supported", file.path());
  }
}

}  // namespace tidal
