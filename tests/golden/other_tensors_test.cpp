// Small random models of every architecture whose tensors are not those that such files usually have: our logits are
// llama.cpp's.
#include <functional>

#include "golden/architectures.h"
#include "model/family.h"

namespace tidal::golden {
namespace {

using test::GgufWriter;

class OtherArchitectures : public Architectures {};

/// Files whose tensors are not those that the family's files usually have.
struct OtherTensors {
  const char* name;
  std::function<void(GgufWriter&)> apply;
  bool moves = true;                   ///< the logits, compared with the usual tensors
  std::vector<std::string> only = {};  ///< families in which libllama does so; empty: all
  bool biases = false;                 ///< of q, k and v
};

/// The tensors `blk.N.PART` of every layer become one behind the other `blk.N.NAME`.
void fuse(GgufWriter& file, const std::vector<std::string>& parts, const std::string& name) {
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    test::Bytes data;
    std::vector<uint64_t> sizes;
    for (const std::string& part : parts) {
      const GgufWriter::Tensor tensor = file.tensor(layer + part);
      data.insert(data.end(), tensor.data.begin(), tensor.data.end());
      const uint64_t rows = sizes.empty() ? 0 : sizes.back();
      sizes = tensor.sizes;
      sizes.back() += rows;
      file.erase_tensor(layer + part);
    }
    file.add(layer + name, GGML_TYPE_F32, sizes).data = data;
  }
}

void add_biases(GgufWriter& file) {
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    for (const std::string name : {"attn_q", "attn_k", "attn_v"}) {
      std::vector<float> values(file.tensor(layer + name + ".weight").sizes[1]);
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(std::sin(static_cast<double>(i)));
      file.add(layer + name + ".bias", values, {values.size()});
    }
  }
}

const OtherTensors kOtherTensors[] = {
    {"second scales of attention",
     [](GgufWriter& file) {
       file.add("blk.0.attn_q.scale", {1.5f}, {1});
       file.add("blk.0.attn_k.scale", {0.5f}, {1});
       file.add("blk.1.attn_v.scale", {-2.0f}, {1});
       file.add("blk.1.attn_output.scale", {0.75f}, {1});
       file.add("blk.1.attn_output.input_scale", {5.0f}, {1});
     }},
    // libllama reads these in other files, too, but its graphs leave them out.
    {"second scales of the MLP",
     [](GgufWriter& file) {
       file.add("blk.0.ffn_gate.scale", {1.5f}, {1});
       file.add("blk.0.ffn_up.scale", {0.5f}, {1});
       file.add("blk.1.ffn_down.scale", {-2.0f}, {1});
     },
     true,
     {"llama", "qwen3", "mistral3"}},
    {"scales of experts",
     [](GgufWriter& file) {
       const auto count = static_cast<size_t>(file.tensor("blk.0.ffn_gate_exps.weight").sizes[2]);
       std::vector<float> scales(count);
       for (size_t i = 0; i < count; ++i) scales[i] = 0.5f + static_cast<float>(i % 3);
       for (const char* name : {"blk.0.ffn_gate_exps", "blk.0.ffn_up_exps", "blk.1.ffn_down_exps"}) {
         file.add(name + std::string(".scale"), scales, {count});
         file.add(name + std::string(".input_scale"), scales, {count});
       }
     },
     true,
     {"llama_experts", "qwen3moe_experts", "mistral3_experts"}},
    {"biases of q, k and v", add_biases, true, {}, true},
    {"fused q, k and v",
     [](GgufWriter& file) {
       fuse(file, {"attn_q.weight", "attn_k.weight", "attn_v.weight"}, "attn_qkv.weight");
     },
     false},
    {"fused with biases and a scale",
     [](GgufWriter& file) {
       add_biases(file);
       fuse(file, {"attn_q.weight", "attn_k.weight", "attn_v.weight"}, "attn_qkv.weight");
       fuse(file, {"attn_q.bias", "attn_k.bias", "attn_v.bias"}, "attn_qkv.bias");
       file.add("blk.0.attn_qkv.scale", {1.25f}, {1});
     },
     true,
     {},
     true},
    {"fused with biases apart",
     [](GgufWriter& file) {
       add_biases(file);
       fuse(file, {"attn_q.weight", "attn_k.weight", "attn_v.weight"}, "attn_qkv.weight");
     },
     true,
     {},
     true},
};

TEST_P(OtherArchitectures, TensorsAreReadAsLlamaDoes) {
  if (find_family(GetParam().architecture)->hybrid) GTEST_SKIP() << "of hybrids hybrids_test.cpp has them";
  const test::TemporaryFolder folder;
  const std::vector<Token> tokens = some_tokens();
  GgufWriter usual = GetParam().model();
  if (std::string(GetParam().architecture).starts_with("qwen2") || std::string(GetParam().architecture) == "seed_oss" ||
      std::string(GetParam().architecture) == "gpt-oss") {  // their files may be without biases, too
    for (const std::string layer : {"blk.0.", "blk.1."}) {
      for (const char* name : {"attn_q.bias", "attn_k.bias", "attn_v.bias"}) usual.erase_tensor(layer + name);
    }
  }
  const auto save = [&](const GgufWriter& file, const char* name) {
    const std::string path = folder.file(std::string(name) + ".gguf");
    file.save(path);
    return path;
  };
  const std::string plain = save(usual, "plain");
  const std::vector<float> theirs_plain = LlamaReference(plain, 128, 1).logits(tokens);
  const double rounding = apart(our_logits(plain, tokens), theirs_plain);
  const double size = apart(theirs_plain, std::vector<float>(theirs_plain.size()));
  EXPECT_LT(rounding, most_rounding(size));
  for (const OtherTensors& other : kOtherTensors) {
    SCOPED_TRACE(other.name);
    if (!other.only.empty() && std::find(other.only.begin(), other.only.end(), GetParam().name()) == other.only.end()) {
      continue;
    }
    if (other.biases && find_family(GetParam().architecture)->scales) continue;  // they would need the scales, too
    GgufWriter file = usual;
    other.apply(file);
    const std::string path = save(file, other.name);
    const std::vector<float> theirs = LlamaReference(path, 128, 1).logits(tokens);
    const double distance = apart(our_logits(path, tokens), theirs), effect = apart(theirs, theirs_plain);
    std::printf("    %-30s apart by %.5f, moved by %.5f\n", other.name, distance, effect);
    EXPECT_LT(distance, 2 * rounding);
    if (other.moves) {
      EXPECT_GT(effect, 4 * rounding) << "the change is too small to be seen";
    } else {
      EXPECT_LT(effect, rounding);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, OtherArchitectures, testing::ValuesIn(kKinds),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace tidal::golden
