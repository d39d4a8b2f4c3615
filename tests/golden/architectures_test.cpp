// Small random models of every architecture and RoPE scaling: our logits are llama.cpp's, so every key and tensor of
// the file is read as llama.cpp reads it.
#include <cmath>
#include <functional>

#include "engine/engine.h"
#include "golden/llama_reference.h"
#include "support/gguf_writer.h"
#include "support/loading.h"

namespace tidal::golden {
namespace {

using test::GgufWriter;

constexpr int kTokens = 120;

std::vector<Token> some_tokens() {
  std::vector<Token> tokens;
  for (int i = 0; i < kTokens; ++i) tokens.push_back((i * i + 3 * i) % 32);
  return tokens;
}

std::vector<float> our_logits(const std::string& path, std::span<const Token> tokens) {
  const auto backend = make_backend("reference", 1);
  const Model model = load_model(path, *backend);
  Engine engine(*backend, model, Plan::full(model.hp.layers), {.context = 128});
  Sequence sequence = engine.create();
  const Engine::Request request{.sequence = &sequence, .tokens = tokens, .all_logits = true};
  const auto logits = engine.step({&request, 1});
  return {logits.begin(), logits.end()};
}

double deviation(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(squares / static_cast<double>(a.size()));
}

struct Change {
  const char* name;
  std::function<void(GgufWriter&, const std::string& prefix)> apply;
};

const Change kChanges[] = {
    {"base", [](GgufWriter& file, const std::string& prefix) { file.set(prefix + "rope.freq_base", 500.0f); }},
    {"linear",
     [](GgufWriter& file, const std::string& prefix) {
       file.set(prefix + "rope.scaling.type", "linear").set(prefix + "rope.scaling.factor", 4.0f);
     }},
    {"factor without a type",
     [](GgufWriter& file, const std::string& prefix) { file.set(prefix + "rope.scaling.factor", 4.0f); }},
    {"old factor", [](GgufWriter& file, const std::string& prefix) { file.set(prefix + "rope.scale_linear", 4.0f); }},
    {"llama3 factors",
     [](GgufWriter& file, const std::string&) {
       file.add("rope_freqs.weight", {1, 1, 1.5f, 2, 3, 4, 8, 8}, {8});
     }},
    {"yarn",
     [](GgufWriter& file, const std::string& prefix) {
       file.set(prefix + "rope.scaling.type", "yarn").set(prefix + "rope.scaling.factor", 4.0f);
       file.set(prefix + "rope.scaling.original_context_length", 32u);
     }},
    {"yarn with all its keys",
     [](GgufWriter& file, const std::string& prefix) {
       file.set(prefix + "rope.scaling.type", "yarn").set(prefix + "rope.scaling.factor", 8.0f);
       file.set(prefix + "rope.scaling.original_context_length", 64u).set(prefix + "rope.scaling.attn_factor", 0.8f);
       file.set(prefix + "rope.scaling.yarn_beta_fast", 2.0f).set(prefix + "rope.scaling.yarn_beta_slow", 0.1f);
       file.set(prefix + "rope.scaling.yarn_ext_factor", 0.5f).set(prefix + "rope.scaling.yarn_attn_factor", 0.5f);
       file.set(prefix + "rope.scaling.yarn_log_multiplier", 0.5f);
     }},
};

class Architectures : public testing::TestWithParam<const char*> {};

// What remains between the engines is the rounding of our cache to bf16, which no scaling of positions makes larger.
// The plain model shows how large that is; a key read otherwise would move the logits as far as the key itself does.
TEST_P(Architectures, LogitsAreLlamas) {
  const test::TemporaryFolder folder;
  const std::vector<Token> tokens = some_tokens();
  const std::string prefix = std::string(GetParam()) + ".";
  const auto save = [&](const GgufWriter& file, const char* name) {
    const std::string path = folder.file(std::string(name) + ".gguf");
    file.save(path);
    return path;
  };
  const std::string plain = save(test::small_model(GetParam()), "plain");
  const std::vector<float> theirs_plain = LlamaReference(plain, 128, 1).logits(tokens);
  const double rounding = deviation(our_logits(plain, tokens), theirs_plain);
  const double size = deviation(theirs_plain, std::vector<float>(theirs_plain.size()));
  std::printf("  %s: logits of size %.3f, apart by %.5f\n", GetParam(), size, rounding);
  EXPECT_LT(rounding, size / 128);  // a few times bf16's half unit, 2^-9

  for (const Change& change : kChanges) {
    SCOPED_TRACE(change.name);
    if (std::string(change.name) == "llama3 factors" && std::string(GetParam()) != "llama") continue;  // only there
    GgufWriter file = test::small_model(GetParam());
    change.apply(file, prefix);
    const std::string path = save(file, change.name);
    const std::vector<float> theirs = LlamaReference(path, 128, 1).logits(tokens);
    const double apart = deviation(our_logits(path, tokens), theirs), effect = deviation(theirs, theirs_plain);
    std::printf("    %-26s apart by %.5f, moved by %.5f\n", change.name, apart, effect);
    EXPECT_LT(apart, 2 * rounding);
    EXPECT_GT(effect, 4 * rounding) << "the change is too small to be seen";
  }
}

INSTANTIATE_TEST_SUITE_P(All, Architectures, testing::Values("llama", "qwen2", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tidal::golden
