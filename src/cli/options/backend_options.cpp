#include "cli/options/backend_options.h"

#include <cstring>

#include "core/error.h"
#include "model/load.h"

namespace tidal {
namespace {

/// The backend's name by -ngl: all layers on the device or none.
std::string name_by_layers(int given, int layers) {
  if (given == 0) return "cpu";
  if (given < 0 || given >= layers) return "cuda";
  fail("--n-gpu-layers: {} of the model's {} layers given, but all run on one device: expected 0 or at least {}", given,
       layers, layers);
}

}  // namespace

void add_backend_options(CLI::App& app, BackendOptions& options) {
  app.add_option("--backend", options.backend, "auto (a GPU where there is one), cpu, cuda or reference")
      ->envname("TIDAL_BACKEND")
      ->capture_default_str();
  app.add_option("--n-gpu-layers,--gpu-layers", options.gpu_layers,
                 "Layers on the GPU (also -ngl): 0 for --backend cpu, all or -1 for --backend cuda")
      ->envname("TIDAL_N_GPU_LAYERS")
      ->type_name("N");
  app.add_option("--weights", options.weights,
                 "On the GPU: auto (they stay quantised as in the file where a product takes their type) or bf16")
      ->check(CLI::IsMember({"auto", "bf16"}))
      ->capture_default_str();
  add_cache_options(app, options.cache);
}

void spell_out_short_flags(int argc, char** argv) {
  static char layers[] = "--n-gpu-layers", parallel[] = "--parallel", host_cache[] = "--no-kv-offload";
  static char keys[] = "--cache-type-k", values[] = "--cache-type-v";
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "-ngl") == 0) argv[i] = layers;
    if (std::strcmp(argv[i], "-np") == 0) argv[i] = parallel;
    if (std::strcmp(argv[i], "-nkvo") == 0) argv[i] = host_cache;
    if (std::strcmp(argv[i], "-ctk") == 0) argv[i] = keys;
    if (std::strcmp(argv[i], "-ctv") == 0) argv[i] = values;
  }
}

std::unique_ptr<Backend> open_backend(const BackendOptions& options, int threads, const std::function<int()>& layers) {
  kv_type(options.cache);  // before a model is loaded
  std::string name = options.backend;
  if (options.gpu_layers) {
    const std::string wanted = name_by_layers(*options.gpu_layers, *options.gpu_layers > 0 ? layers() : 0);
    if (name != "auto" && name != wanted) {
      fail("--n-gpu-layers: {} means --backend {}, but --backend {} is given", *options.gpu_layers, wanted, name);
    }
    name = wanted;
  }
  if (options.weights != "auto" && (name == "cpu" || name == "reference")) {
    fail("--weights: {} is for --backend cuda, --backend {} takes weights as the file has them", options.weights, name);
  }
  return make_backend(name, threads, options.weights == "auto");
}

std::unique_ptr<Backend> open_backend(const BackendOptions& options, int threads, const std::string& model) {
  return open_backend(options, threads, [&] { return read_hyperparameters(GgufFile::open(model)).layers; });
}

}  // namespace tidal
