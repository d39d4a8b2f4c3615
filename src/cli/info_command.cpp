#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "backend/sketch.h"
#include "cli/bench/options.h"
#include "cli/commands.h"
#include "cli/console/output.h"
#include "cli/info_memory.h"
#include "cli/options/cache_options.h"
#include "cli/options/plan_options.h"
#include "cli/options/plan_text.h"
#include "core/error.h"
#include "core/utf8.h"
#include "engine/engine.h"
#include "model/gguf.h"

namespace tidal {
namespace {

using Json = nlohmann::ordered_json;

struct InfoFlags {
  std::string model, shape, type = "q4_0";
  std::optional<int> context;  // of the memory; the trained one without
  bool json = false;
  CacheOptions cache;
  PlanOptions plan;
};

/// Bytes that one decode step reads at a depth.
struct DepthBytes {
  int depth = 0;
  int64_t full = 0;
  std::optional<int64_t> tidal = {}, sketch = {};
};

struct Info {
  std::string path;
  Model model;
  ChosenPlan plan;                    // what tidal run takes
  std::optional<Plan> tidal, sketch;  // of either kind of attention; none where too few layers read the whole context
  KvType kv_type = KvType::Bf16;
  std::optional<int> gpu_full_below;  // Plan::full_below of tidal run on a GPU; none in a build without CUDA
  int64_t sketch_bytes = 0;           // memory per token, where a plan scans
  int64_t cache_bytes = 0;            // K and V of one sequence with the trained context
  std::string rope_scaling;           // "none" where the file does not say
  double rope_base = 0;               // 0 where the file does not say
  std::map<std::string, int> tensor_types;
  std::map<std::string, std::string> gpu_types;  // of matrices: what a GPU makes of them; empty in a build without CUDA
  std::vector<DepthBytes> reads;
  MemoryTable memory;
};

/// What a GPU makes of a type; what it is in a build without CUDA.
ggml_type gpu_type(ggml_type type) { return cuda_matrix_type(type).value_or(type); }

/// By the plan of `tidal run`, as far as memory hangs on it.
MemoryTable memory_of(const InfoFlags& flags, const Hyperparameters& hp, int64_t weights, int64_t host_weights) {
  const int context = flags.context.value_or(hp.context);
  if (context < 1) fail("--ctx-size: {} given, at least 1 is needed", context);
  return memory_table(hp, weights, host_weights, choose_plan(flags.plan, hp).plan, context);
}

void read_bytes(Info& info, Backend& backend) {
  const Hyperparameters& hp = info.model.hp;
  for (int depth = 1024; depth < hp.context; depth *= 4) info.reads.push_back({.depth = depth});
  info.reads.push_back({.depth = hp.context});
  // One position is all that the engine has to hold to know what it would read.
  const Engine engine(backend, info.model, Plan::full(hp.layers), {.context = 1, .kv_type = info.kv_type});
  for (DepthBytes& read : info.reads) {
    read.full = engine.decode_bytes(read.depth);
    if (info.tidal) read.tidal = engine.decode_bytes(read.depth, *info.tidal);
    if (info.sketch) read.sketch = engine.decode_bytes(read.depth, *info.sketch);
  }
}

/// Memory of the sketches of all layers per position.
int64_t sketch_bytes_per_token(const Hyperparameters& hp, const Plan& plan) {
  int64_t tile = SketchLayout{hp.head_dim, plan.policy.sketch_bits}.bytes();
  if (plan.completes()) tile += ValueSketchLayout{hp.head_dim}.bytes();
  return hp.sketched_layers() * tile * hp.kv_heads / kBlockTokens;
}

std::optional<int> gpu_full_below(const PlanOptions& options, const Hyperparameters& hp, KvType type) {
  const auto of_plan = [&](const Plan& plan) { return cuda_full_below(hp, plan.roles, plan.policy, type); };
  const Plan plan = choose_plan(options, hp, [&](const Plan& chosen) { return of_plan(chosen).value_or(0); }).plan;
  return of_plan(plan) ? std::optional(plan.full_below) : std::nullopt;
}

Info collect(const InfoFlags& flags, Backend& backend) {
  Info info;
  info.path = flags.model;
  info.kv_type = kv_type(flags.cache);
  info.model = load_model(flags.model, backend);
  const Hyperparameters& hp = info.model.hp;
  check_budget(flags.plan, hp.context);
  info.plan = choose_plan(flags.plan, hp);
  info.gpu_full_below = gpu_full_below(flags.plan, hp, info.kv_type);
  std::vector<std::string> kinds;
  if (!hp.layers_that_read_all().empty()) kinds.emplace_back("sketch");
  if (has_tidal_plans(hp)) kinds.emplace_back("tidal");
  for (const ChosenPlan& chosen : choose_plans(flags.plan, kinds, hp)) {
    (info.sketch ? info.tidal : info.sketch) = chosen.plan;
  }
  const EngineOptions longest{.context = hp.context, .kv_type = info.kv_type};
  info.cache_bytes = engine_sizes(backend, hp, longest).window_blocks > 0
                         ? engine_memory(backend, hp, Plan::full(hp.layers), longest).cache
                         : hp.kv_bytes_per_token(info.kv_type) * hp.context;
  if (info.sketch) info.sketch_bytes = sketch_bytes_per_token(hp, *info.sketch);
  const GgufFile file = GgufFile::open(flags.model);
  info.rope_base = file.number(hp.architecture + ".rope.freq_base").value_or(0);
  info.rope_scaling = file.text(hp.architecture + ".rope.scaling.type").value_or("none");
  int64_t gpu_bytes = 0;
  for (const auto& [name, weight] : file.tensors()) {
    ++info.tensor_types[ggml_type_name(weight.type)];
    const std::optional<ggml_type> there = cuda_matrix_type(weight.type);
    if (there && weight.rows > 1) info.gpu_types[ggml_type_name(weight.type)] = ggml_type_name(*there);
    const ggml_type on_gpu = weight.rows > 1 ? gpu_type(weight.type) : weight.type;
    gpu_bytes += static_cast<int64_t>(ggml_row_size(on_gpu, weight.cols)) * weight.rows;
  }
  info.memory = memory_of(flags, hp, gpu_bytes, info.model.file_bytes);
  read_bytes(info, backend);
  return info;
}

const char* pairing_name(Rope::Pairing pairing) { return pairing == Rope::Pairing::Adjacent ? "adjacent" : "halves"; }

/// null without experts.
Json experts_json(const Experts& experts) {
  if (!experts) return {};
  return {{"count", experts.count}, {"used", experts.used}, {"ffn", experts.ffn}, {"shared_ffn", experts.shared_ffn}};
}

std::string experts_text(const Experts& experts) {
  std::string text =
      fmt::format("{}, of which a token goes through {}; ffn {}", experts.count, experts.used, experts.ffn);
  if (experts.shared_ffn > 0) text += fmt::format(", and through a shared one of {}", experts.shared_ffn);
  return text;
}

/// null without recurrent layers.
Json recurrent_json(const Hyperparameters& hp) {
  if (hp.recurrent_layers() == 0) return {};
  std::vector<int> layers;
  for (int l = 0; l < hp.layers; ++l) {
    if (hp.recurs(l)) layers.push_back(l);
  }
  const DeltaNet& net = hp.delta;
  return {{"layers", layers},          {"key_heads", net.key_heads}, {"value_heads", net.value_heads},
          {"head_size", net.head_dim}, {"taps", net.taps},           {"state_bytes", hp.state_bytes()}};
}

std::string as_json(const Info& info) {
  const Hyperparameters& hp = info.model.hp;
  Json reads = Json::array();
  for (const DepthBytes& read : info.reads) {
    const auto bytes = [](const std::optional<int64_t>& of_plan) { return of_plan ? Json(*of_plan) : Json(); };
    reads.push_back(
        {{"depth", read.depth}, {"full", read.full}, {"tidal", bytes(read.tidal)}, {"sketch", bytes(read.sketch)}});
  }
  Json plan = Json::parse(to_json(info.plan.plan, hp));
  plan["source"] = as_utf8(info.plan.source);
  Json json = {
      {"file", as_utf8(info.path)},
      {"file_bytes", info.model.file_bytes},
      {"architecture", hp.architecture},
      {"name", hp.name},
      {"layers", hp.layers},
      {"width", hp.width},
      {"heads", hp.heads},
      {"kv_heads", hp.kv_heads},
      {"head_size", hp.head_dim},
      {"window_kv",
       hp.window_kv ? Json({{"kv_heads", hp.window_kv.heads}, {"head_size", hp.window_kv.head_dim}}) : Json()},
      {"windows", hp.windows.empty() ? Json() : Json(hp.windows)},
      {"recurrent", recurrent_json(hp)},
      {"ffn", hp.ffn},
      {"experts", experts_json(hp.experts)},
      {"vocab", hp.vocab},
      {"context", hp.context},
      {"rope",
       {{"size", hp.rope.dims},
        {"pairing", pairing_name(hp.rope.pairing)},
        {"base", info.rope_base > 0 ? Json(info.rope_base) : Json()},
        {"scaling", info.rope_scaling}}},
      {"quantisation", info.model.quantisation},
      {"tensor_types", info.tensor_types},
      {"plan", plan},
      {"weight_bytes_per_token", info.model.decode_weight_bytes()},
      {"kv_type", kv_type_name(info.kv_type)},
      {"kv_bytes_per_token", hp.kv_bytes_per_token(info.kv_type)},
      {"kv_bytes_at_context", info.cache_bytes},
      {"kv_bytes_at_context_swa_full", hp.kv_bytes_per_token(info.kv_type) * hp.context},
      {"sketch_bits", info.sketch ? Json(info.sketch->policy.sketch_bits) : Json()},
      {"sketch_bytes_per_token", info.sketch_bytes},
      {"sketch_bytes_at_context", info.sketch_bytes * hp.context},
      {"decode_bytes", reads},
      {"gpu_memory", as_json(info.memory)},
  };
  if (info.gpu_full_below) json["gpu_full_below"] = *info.gpu_full_below;
  if (!info.gpu_types.empty()) json["gpu_types"] = info.gpu_types;
  // Names in files need not be UTF-8.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

/// What of a file's matrices a GPU keeps as it is, and what not.
std::string gpu_types_text(const std::map<std::string, std::string>& types) {
  std::string kept, others;
  for (const auto& [type, there] : types) {
    std::string& list = type == there ? kept : others;
    if (!list.empty()) list += ", ";
    list += type == there ? type : fmt::format("{} as {}", type, there);
  }
  if (others.empty()) return "as in the file";
  return kept.empty() ? others : fmt::format("{}; {} as in the file", others, kept);
}

std::string whole_layers(const Hyperparameters& hp) {
  const std::vector<int> layers = hp.layers_that_read_all();
  return layers.empty() ? "none" : fmt::format("{}", fmt::join(layers, ", "));
}

std::string in_megabytes(int64_t bytes) { return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6); }

std::string cache_text(const Info& info) {
  const Hyperparameters& hp = info.model.hp;
  const int64_t token = hp.kv_bytes_per_token(info.kv_type), whole = token * hp.context;
  std::string text = fmt::format("{}: {:.1f} kB per token, {} at the trained context", kv_type_name(info.kv_type),
                                 static_cast<double>(token) / 1e3, in_megabytes(info.cache_bytes));
  if (info.cache_bytes == whole) return text;
  const int64_t of_others = token - hp.window_bytes_per_token(info.kv_type);
  return text + fmt::format(
                    ": {:.1f} kB a token are in layers that read all of it, the others keep their window; {} "
                    "with --swa-full",
                    static_cast<double>(of_others) / 1e3, in_megabytes(whole));
}

std::string as_text(const Info& info) {
  const Hyperparameters& hp = info.model.hp;
  std::string text;
  const auto line = [&](const char* what, const std::string& value) { text += fmt::format("{:<22}{}\n", what, value); };
  std::string types;
  for (const auto& [type, count] : info.tensor_types) {
    types += fmt::format("{}{} {}", types.empty() ? "" : ", ", count, type);
  }
  line("file", fmt::format("{}, {}", info.path, in_megabytes(info.model.file_bytes)));
  line("architecture", hp.architecture);
  line("name", hp.name.empty() ? "(none)" : hp.name);
  line("quantisation",
       fmt::format("{} (tensors: {})", info.model.quantisation.empty() ? "not named" : info.model.quantisation, types));
  const std::string others = other_layers_text(hp);
  line("layers", others.empty() ? std::to_string(hp.layers)
                                : fmt::format("{}; {} read the whole context", others, whole_layers(hp)));
  line("width", std::to_string(hp.width));
  const std::string of_windows =
      hp.window_kv ? fmt::format("; {} of size {} in layers with a window", hp.window_kv.heads, hp.window_kv.head_dim)
                   : "";
  line("heads", fmt::format("{} of size {}, {} KV heads{}", hp.heads, hp.head_dim, hp.kv_heads, of_windows));
  if (hp.recurrent_layers() > 0) {
    line("recurrent layers",
         fmt::format("{} key and {} value heads of size {}, convolution over {} rows; a state of {} a sequence",
                     hp.delta.key_heads, hp.delta.value_heads, hp.delta.head_dim, hp.delta.taps,
                     in_megabytes(hp.state_bytes())));
  }
  if (hp.experts) {
    line("experts", experts_text(hp.experts));
  } else {
    line("ffn", std::to_string(hp.ffn));
  }
  line("vocabulary", fmt::format("{} tokens", hp.vocab));
  line("trained context", fmt::format("{} tokens", hp.context));
  line("rope",
       fmt::format("{} elements of a head, paired {}, base {}, scaling {}", hp.rope.dims, pairing_name(hp.rope.pairing),
                   info.rope_base > 0 ? fmt::format("{:g}", info.rope_base) : "not given", info.rope_scaling));
  line("plan", describe(info.plan.plan, info.plan.source, hp));
  // A plan file's own number stands in its description.
  if (const int number = info.gpu_full_below.value_or(0); number > 0 && info.plan.plan.full_below == 0) {
    line("on a GPU",
         fmt::format("full attention below {} positions, {} attention from there on", number, kind_of(info.plan.plan)));
  }
  if (!info.gpu_types.empty()) line("GPU weights", gpu_types_text(info.gpu_types));
  line("weights", fmt::format("{} read per decoded token", in_megabytes(info.model.decode_weight_bytes())));
  line("KV cache", cache_text(info));
  if (info.sketch) {
    line("sketches", fmt::format("{}: {:.2f} kB per token, {} at the trained context, beside the KV cache, kept only "
                                 "where a plan scans",
                                 bits_text(info.sketch->policy), static_cast<double>(info.sketch_bytes) / 1e3,
                                 in_megabytes(info.sketch_bytes * hp.context)));
  }
  text += "\nread per decoded token: weights, K/V and sketches\n";
  text += fmt::format("{:>10}{:>14}{:>14}{:>9}{:>14}{:>9}\n", "context", "full", "tidal", "ratio", "sketch", "ratio");
  for (const DepthBytes& read : info.reads) {
    const auto beside_full = [&](const std::optional<int64_t>& bytes) {
      if (!bytes) return fmt::format("{:>14}{:>9}", "-", "-");
      return fmt::format("{:>14}{:>8.2f}x", in_megabytes(*bytes),
                         static_cast<double>(read.full) / static_cast<double>(*bytes));
    };
    text += fmt::format("{:>10}{:>14}{}{}\n", read.depth, in_megabytes(read.full), beside_full(read.tidal),
                        beside_full(read.sketch));
  }
  return text + as_text(info.memory);
}

std::string about_shape(const InfoFlags& flags) {
  const Hyperparameters hp = known_shape(flags.shape);
  if (flags.plan.attention != "full") check_budget(flags.plan, flags.context.value_or(hp.context));
  const ggml_type type = weight_type_from(flags.type);
  const MemoryTable table = memory_of(flags, hp, weight_bytes(hp, gpu_type(type)), weight_bytes(hp, type));
  return flags.json ? as_json(table).dump(2) + "\n" : as_text(table).substr(1);
}

}  // namespace

void add_info_command(CLI::App& app) {
  const auto flags = std::make_shared<InfoFlags>();
  CLI::App* command = app.add_subcommand("info", "Say what is in a model file, and what decoding it reads");
  command->add_option("-m,--model", flags->model, "GGUF model file")->envname("TIDAL_MODEL")->type_name("FILE");
  command->add_option("--shape", flags->shape, "Only its memory on a GPU, of a known shape instead of a file");
  command->add_option("--type", flags->type, "Type of its weights")->capture_default_str();
  command
      ->add_option("-c,--ctx-size", flags->context, "Positions that memory is asked of (default: the trained context)")
      ->type_name("N");
  command->add_flag("--json", flags->json, "As JSON");
  add_cache_options(*command, flags->cache);
  add_attention_option(*command, flags->plan, "full|tidal|sketch");
  add_plan_options(*command, flags->plan);
  command->callback([flags] {
    if (flags->model.empty() == flags->shape.empty())
      fail("info: give either a model file (-m) or a known shape (--shape)");
    find_plan_file(flags->plan, flags->model);
    static_cast<void>(kv_type(flags->cache));  // refused here, whatever is asked
    if (!flags->shape.empty()) return write_out(about_shape(*flags));
    const auto backend = make_reference_backend();
    const Info info = collect(*flags, *backend);
    write_out(flags->json ? as_json(info) : as_text(info));
  });
}

}  // namespace tidal
