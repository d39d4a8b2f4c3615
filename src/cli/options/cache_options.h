// What the KV cache is kept in.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "backend/kv_row.h"

namespace tidal {

struct CacheOptions {
  std::string keys = "bf16", values = "bf16";  ///< words of llama.cpp: bf16, f16, q8_0
};

/// Adds --cache-type-k and --cache-type-v. `options` must outlive the parsing.
void add_cache_options(CLI::App& app, CacheOptions& options);
/// Throws Error for a type that there is none of, and where keys and values are of two.
KvType kv_type(const CacheOptions& options);

}  // namespace tidal
