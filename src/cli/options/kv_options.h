// Where K and V are kept.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "engine/engine.h"

namespace tidal {

struct KvOptions {
  std::string device = "auto";  ///< all, auto or a size
  bool no_offload = false;      ///< as llama.cpp's -nkvo
};

/// Adds --kv-device and --no-kv-offload. `options` must outlive the parsing.
void add_kv_options(CLI::App& app, KvOptions& options);
/// What they mean on this backend. Throws Error for a size that is none, for flags that contradict each other, and for
/// part of the K and V on the device of a backend that has none.
KvPlace kv_place(const KvOptions& options, const Backend& backend);
/// Says so where not all K and V have room on the device.
void tell_kv_place(const KvPool& pool);

}  // namespace tidal
