// Where K and V are kept.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "engine/engine.h"

namespace tidal {

struct KvOptions {
  std::string device = "auto";  ///< all, auto or a size
  bool no_offload = false;      ///< as llama.cpp's -nkvo
  std::string directory;        ///< of a file for K and V; empty: in memory
};

/// Adds --kv-device, --no-kv-offload and --kv-dir. `options` must outlive the parsing.
void add_kv_options(CLI::App& app, KvOptions& options);
/// What they mean on this backend. Throws Error for a size that is none, for flags that contradict each other, for
/// part of the K and V on the device of a backend that has none, and for a folder that no file can be made in, or that
/// is given to a backend that has a device.
KvPlace kv_place(const KvOptions& options, const Backend& backend);
/// Says so where not all K and V have room on the device, or where they are in a file.
void tell_kv_place(const KvPool& pool);

}  // namespace tidal
