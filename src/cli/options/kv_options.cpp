#include "cli/options/kv_options.h"

#include <fmt/core.h>

#include <charconv>
#include <optional>

#include "cli/console/output.h"
#include "core/available_disk.h"
#include "core/error.h"

namespace tidal {
namespace {

/// 2GiB, 2GB, 2G, 2048M, 2g: all of 1024; without a unit bytes.
std::optional<int64_t> parse_size(std::string text) {
  try {
    if (!CLI::AsSizeValue(false)(text).empty()) return {};
  } catch (const CLI::ValidationError&) {  // an unknown unit
    return {};
  }
  int64_t bytes = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bytes);
  if (error != std::errc() || end != text.data() + text.size() || bytes < 0) return {};
  return bytes;
}

void check_directory(const std::string& directory, const Backend& backend) {
  if (!backend.device().empty()) {
    fail(
        "--kv-dir: K and V are in a file with --backend cpu, with --backend {} what does not fit is in host memory "
        "(--kv-device)",
        backend.name());
  }
  const std::string problem = directory_problem(directory);
  if (!problem.empty()) fail("--kv-dir: {}: {}", directory, problem);
}

/// All but the folder.
KvPlace place_on_device(const KvOptions& options, const Backend& backend) {
  const bool device = !backend.device().empty();
  if (options.no_offload) {
    if (options.device != "auto") {
      fail("--no-kv-offload: K and V are to be in host memory, but --kv-device {} is given", options.device);
    }
    return device ? KvPlace{KvPlace::Kind::Bytes, 0} : KvPlace{};
  }
  if (options.device == "all") return {};
  if (options.device == "auto") return {KvPlace::Kind::Auto, 0};
  const std::optional<int64_t> bytes = parse_size(options.device);
  if (!bytes) fail("--kv-device: '{}' is no size, expected all, auto or one like 2GiB", options.device);
  if (!device) {
    fail("--kv-device: {} is for --backend cuda, with --backend {} all K and V are in the host's memory",
         options.device, backend.name());
  }
  return {KvPlace::Kind::Bytes, *bytes};
}

}  // namespace

void add_kv_options(CLI::App& app, KvOptions& options) {
  app.add_option("--kv-device", options.device,
                 "K and V on the GPU: all, auto (as much as it has memory for) or a size (2GiB, 2048M); the others "
                 "are in host memory")
      ->envname("TIDAL_KV_DEVICE")
      ->type_name("SIZE")
      ->capture_default_str();
  app.add_flag("--no-kv-offload", options.no_offload,
               "K and V in host memory (also -nkvo), but for the blocks that are being written")
      ->envname("TIDAL_NO_KV_OFFLOAD");
  app.add_option("--kv-dir", options.directory,
                 "K and V in a file in this folder, so that a context may be larger than the memory; the file has no "
                 "name and goes with the program (on the CPU)")
      ->envname("TIDAL_KV_DIR")
      ->type_name("DIR");
}

KvPlace kv_place(const KvOptions& options, const Backend& backend) {
  if (!options.directory.empty()) check_directory(options.directory, backend);
  KvPlace place = place_on_device(options, backend);
  place.directory = options.directory;
  return place;
}

void tell_kv_place(const KvPool& pool) {
  constexpr double kGibi = 1 << 30;
  if (pool.file_bytes() > 0) {
    note(fmt::format("KV cache: {:.2f} GiB in a file, sketches of {:.2f} GiB in memory (--kv-dir)",
                     static_cast<double>(pool.file_bytes()) / kGibi, static_cast<double>(pool.sketch_bytes()) / kGibi));
  }
  if (pool.device_blocks() == pool.blocks()) return;
  const double all = static_cast<double>(pool.bytes()) / kGibi;
  const double host = static_cast<double>(pool.host_bytes()) / kGibi;
  note(fmt::format("KV cache: {:.2f} of {:.2f} GiB on the device, up to {:.2f} GiB in host memory (--kv-device)",
                   all - host, all, host));
}

}  // namespace tidal
