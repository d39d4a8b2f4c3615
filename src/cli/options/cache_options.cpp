#include "cli/options/cache_options.h"

#include "core/error.h"

namespace tidal {
namespace {

KvType type_of(const char* flag, const std::string& word) {
  if (word == "bf16" || word == "f16") return KvType::Bf16;  // of as many bits, and no number is too large for it
  if (word == "q8_0") return KvType::Q8;
  fail("{}: '{}' is no type that the cache is kept in, expected bf16, f16 (which becomes bf16) or q8_0", flag, word);
}

}  // namespace

void add_cache_options(CLI::App& app, CacheOptions& options) {
  app.add_option("--cache-type-k", options.keys,
                 "Keys of the KV cache (also -ctk): bf16, q8_0 (8 bits, about half the memory), or f16, which becomes "
                 "bf16; values must be of the same type")
      ->envname("TIDAL_CACHE_TYPE_K")
      ->type_name("TYPE")
      ->capture_default_str();
  app.add_option("--cache-type-v", options.values, "Values of the KV cache (also -ctv), likewise")
      ->envname("TIDAL_CACHE_TYPE_V")
      ->type_name("TYPE")
      ->capture_default_str();
}

KvType kv_type(const CacheOptions& options) {
  const KvType keys = type_of("--cache-type-k", options.keys), values = type_of("--cache-type-v", options.values);
  if (keys != values) {
    fail(
        "--cache-type-k: {} given, but --cache-type-v is {}: a row has keys and values of one type, give both the same",
        options.keys, options.values);
  }
  return keys;
}

}  // namespace tidal
