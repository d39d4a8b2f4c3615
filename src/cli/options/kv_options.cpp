#include "cli/options/kv_options.h"

#include <fmt/core.h>

#include <charconv>
#include <optional>

#include "cli/console/output.h"
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
}

KvPlace kv_place(const KvOptions& options, const Backend& backend) {
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

void tell_kv_place(const KvPool& pool) {
  if (pool.device_blocks() == pool.blocks()) return;
  constexpr double kGibi = 1 << 30;
  const double all = static_cast<double>(pool.bytes()) / kGibi;
  const double host = static_cast<double>(pool.host_bytes()) / kGibi;
  note(fmt::format("KV cache: {:.2f} of {:.2f} GiB on the device, up to {:.2f} GiB in host memory (--kv-device)",
                   all - host, all, host));
}

}  // namespace tidal
