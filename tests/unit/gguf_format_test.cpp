// GGUF files whose bytes are damaged: every one is refused with a message that says what is wrong, none is believed.
#include "model/gguf.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <random>

#include "support/loading.h"

namespace tidal::test {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr uint64_t kHuge = uint64_t{1} << 60;

/// Overwrites the bytes at `distance` from the start of `text` in the file.
template <typename T>
Bytes patched(Bytes bytes, std::string_view text, ptrdiff_t distance, T value) {
  const auto* start = reinterpret_cast<const std::byte*>(text.data());
  const auto found = std::search(bytes.begin(), bytes.end(), start, start + text.size());
  EXPECT_NE(found, bytes.end());
  std::memcpy(&*found + distance, &value, sizeof(value));
  return bytes;
}

TEST(GgufFormat, SoundFilesOfBothVersionsLoad) {
  for (const uint32_t version : {2u, 3u}) {
    GgufWriter writer = small_model("llama");
    writer.version = version;
    EXPECT_EQ(refusal(writer), "") << "version " << version;
  }
}

TEST(GgufFormat, ParsedValuesAreTheFiles) {
  GgufWriter writer = small_model("llama");
  writer.set("a.large", 4000000000u).set("a.flag", true).set("a.number", 0.25f).set("a.empty", "");
  writer.set("a.list", std::vector<uint32_t>{3, 1, 4000000000u});
  Bytes negative;
  append(negative, static_cast<uint32_t>(GGUF_TYPE_INT32));
  append(negative, uint64_t{2});
  append(negative, int32_t{-7});
  append(negative, int32_t{8});
  writer.set_raw("a.signed", GGUF_TYPE_ARRAY, negative);
  const Bytes bytes = writer.bytes();
  const GgufFile file = GgufFile::parse(bytes.data(), bytes.size(), "test.gguf");
  EXPECT_EQ(file.path(), "test.gguf");
  EXPECT_EQ(file.file_bytes(), static_cast<int64_t>(bytes.size()));
  EXPECT_EQ(file.text("general.name"), "small");
  EXPECT_EQ(file.text("a.empty"), "");
  EXPECT_EQ(file.integer("a.large"), 4000000000);
  EXPECT_EQ(file.flag("a.flag"), true);
  EXPECT_EQ(file.number("a.number"), 0.25);
  EXPECT_EQ(file.integers("a.list"), (std::vector<int64_t>{3, 1, 4000000000}));
  EXPECT_EQ(file.integers("a.signed"), (std::vector<int64_t>{-7, 8}));
  EXPECT_EQ(file.integers("a.large"), std::vector<int64_t>{4000000000});
  EXPECT_EQ(file.array_size("tokenizer.ggml.tokens"), 32);
  EXPECT_EQ(file.text("absent"), std::nullopt);
  EXPECT_EQ(file.integers("absent"), std::nullopt);

  const GgufWriter::Tensor& expected = writer.tensor("blk.1.ffn_down.weight");
  const Weight& found = file.tensors().at("blk.1.ffn_down.weight");
  EXPECT_EQ(found.rows, 64);
  EXPECT_EQ(found.cols, 96);
  EXPECT_EQ(std::memcmp(found.data, expected.data.data(), expected.data.size()), 0);
}

// As strict as libllama: an integer is a u32 and a number an f32, whatever the value would fit into.
TEST(GgufFormat, ValuesOfAnotherTypeAreRefused) {
  GgufWriter writer = small_model("llama");
  writer.set("a.flag", true).set("a.i32", 7).set("a.u64", uint64_t{7}).set("a.u16", uint16_t{7}).set("a.f64", 0.5);
  writer.set("a.u32", 7u).set("a.list", std::vector<uint32_t>{7});
  const Bytes bytes = writer.bytes();
  const GgufFile file = GgufFile::parse(bytes.data(), bytes.size(), "test.gguf");
  const auto message = [](const auto& read) -> std::string {
    try {
      read();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const auto expect = [&](const auto& read, const std::string& what) {
    EXPECT_EQ(message(read), "test.gguf: key " + what);
  };
  expect([&] { file.text("a.flag"); }, "'a.flag' has type bool, expected a string");
  expect([&] { file.text("tokenizer.ggml.tokens"); }, "'tokenizer.ggml.tokens' has type arr, expected a string");
  expect([&] { file.integer("general.name"); }, "'general.name' has type str, expected u32");
  expect([&] { file.integer("a.i32"); }, "'a.i32' has type i32, expected u32");
  expect([&] { file.integer("a.u64"); }, "'a.u64' has type u64, expected u32");
  expect([&] { file.integer("a.u16"); }, "'a.u16' has type u16, expected u32");
  expect([&] { file.integer("a.list"); }, "'a.list' has type arr, expected u32");
  expect([&] { file.number("a.f64"); }, "'a.f64' has type f64, expected f32");
  expect([&] { file.number("a.u32"); }, "'a.u32' has type u32, expected f32");
  expect([&] { file.flag("general.name"); }, "'general.name' has type str, expected a bool");
  expect([&] { file.array_size("general.name"); }, "'general.name' has type str, expected an array");
  expect([&] { file.integers("a.i32"); }, "'a.i32' has type i32, expected u32");
  expect([&] { file.integers("tokenizer.ggml.tokens"); },
         "'tokenizer.ggml.tokens' is an array of str, expected one of u32, i32 or bool");
}

TEST(GgufFormat, NotAGgufFile) {
  EXPECT_EQ(refusal(Bytes()),
            "test.gguf: the magic at byte 0 needs 4 bytes, but the file ends at byte 0; is it truncated?");
  EXPECT_EQ(refusal(Bytes(4096)), "test.gguf: is not a GGUF file: it does not begin with the four letters GGUF");
  GgufWriter writer = small_model("llama");
  writer.magic = "GGML";
  EXPECT_EQ(refusal(writer), "test.gguf: is not a GGUF file: it does not begin with the four letters GGUF");
}

TEST(GgufFormat, OtherVersionsAndByteOrders) {
  GgufWriter writer = small_model("llama");
  for (const uint32_t version : {0u, 1u, 4u, 0xFFFFFFFFu}) {
    writer.version = version;
    EXPECT_EQ(refusal(writer), fmt::format("test.gguf: is a GGUF file of version {}, expected 2 or 3", version));
  }
  for (const uint32_t version : {2u, 3u}) {
    writer.version = __builtin_bswap32(version);
    EXPECT_EQ(refusal(writer), "test.gguf: is a big-endian GGUF file, expected a little-endian one");
  }
}

TEST(GgufFormat, HugeCounts) {
  for (const uint64_t count : {kHuge, ~uint64_t{0}, uint64_t{1} << 31}) {
    GgufWriter writer = small_model("llama");
    writer.tensor_count = count;
    EXPECT_EQ(refusal(writer), fmt::format("test.gguf: claims {} tensors, more than fit in the file", count));
    writer = small_model("llama");
    writer.key_count = count;
    EXPECT_EQ(refusal(writer), fmt::format("test.gguf: claims {} keys, more than fit in the file", count));
  }
}

TEST(GgufFormat, HugeLengths) {
  const Bytes sound = small_model("llama").bytes();
  for (const uint64_t length : {kHuge, ~uint64_t{0}, uint64_t{1} << 32}) {
    const std::string needs = fmt::format("needs {} bytes, but the file ends at byte {}", length, sound.size());
    EXPECT_THAT(refusal(patched(sound, "general.name", -8, length)), HasSubstr("a key at byte "));
    EXPECT_THAT(refusal(patched(sound, "general.name", -8, length)), HasSubstr(needs));
    EXPECT_THAT(refusal(patched(sound, "small", -8, length)), HasSubstr("a string at byte "));
    EXPECT_THAT(refusal(patched(sound, "small", -8, length)), HasSubstr(needs));
    EXPECT_THAT(refusal(patched(sound, "token7", -8, length)), HasSubstr(needs));
    EXPECT_THAT(refusal(patched(sound, "blk.1.ffn_up.weight", -8, length)), HasSubstr("a tensor's name at byte "));
    EXPECT_THAT(refusal(patched(sound, "blk.1.ffn_up.weight", -8, length)), HasSubstr(needs));

    for (const gguf_type type : {GGUF_TYPE_STRING, GGUF_TYPE_UINT8, GGUF_TYPE_FLOAT64}) {
      Bytes array;
      append(array, static_cast<uint32_t>(type));
      append(array, length);
      GgufWriter writer = small_model("llama");
      writer.set_raw("a.list", GGUF_TYPE_ARRAY, array);
      EXPECT_THAT(refusal(writer), HasSubstr(fmt::format("key 'a.list' claims {} ", length))) << gguf_type_name(type);
    }
  }
}

TEST(GgufFormat, UnknownValueTypes) {
  GgufWriter writer = small_model("llama");
  writer.set_raw("a.key", 13, Bytes(8));
  EXPECT_EQ(refusal(writer), "test.gguf: key 'a.key' has the unknown value type 13");
  Bytes nested;  // an array of arrays
  append(nested, static_cast<uint32_t>(GGUF_TYPE_ARRAY));
  append(nested, uint64_t{1});
  append(nested, static_cast<uint32_t>(GGUF_TYPE_UINT8));
  append(nested, uint64_t{0});
  writer.set_raw("a.key", GGUF_TYPE_ARRAY, nested);
  EXPECT_EQ(refusal(writer), "test.gguf: key 'a.key' has the unknown value type 9");
}

TEST(GgufFormat, KeysAndTensorsTwice) {
  GgufWriter writer = small_model("llama");
  writer.repeat("general.name");
  EXPECT_EQ(refusal(writer), "test.gguf: key 'general.name' stands in the file twice");
  writer = small_model("llama");
  writer.tensor("blk.1.attn_q.weight").name = "blk.0.attn_q.weight";
  EXPECT_EQ(refusal(writer), "test.gguf: tensor 'blk.0.attn_q.weight' stands in the file twice");
}

TEST(GgufFormat, NamesOfImpossibleLength) {
  GgufWriter writer = small_model("llama");
  writer.set("", 1u);
  EXPECT_EQ(refusal(writer), "test.gguf: key 14 has no name");
  writer = small_model("llama");
  writer.tensor("blk.1.attn_q.weight").name = "";
  EXPECT_EQ(refusal(writer), "test.gguf: a tensor's name has 0 bytes, expected 1 to 63");
  writer.tensor("").name = std::string(64, 'x');
  EXPECT_EQ(refusal(writer), "test.gguf: a tensor's name has 64 bytes, expected 1 to 63");
}

TEST(GgufFormat, Alignment) {
  GgufWriter writer = small_model("llama");
  for (const uint32_t sound : {8u, 64u, 4096u}) {
    EXPECT_EQ(refusal(writer.set("general.alignment", sound)), "") << sound;
  }
  const char* message = "test.gguf: general.alignment must be an unsigned power of two from 8 to 2^20";
  for (const uint32_t wrong : {0u, 1u, 4u, 24u, 1u << 21, 1u << 31, 0xFFFFFFFFu}) {
    EXPECT_EQ(refusal(writer.set("general.alignment", wrong)), message) << wrong;
  }
  EXPECT_EQ(refusal(writer.set("general.alignment", "32")), message);
  EXPECT_EQ(refusal(writer.set("general.alignment", std::vector<uint32_t>{32})), message);
  EXPECT_EQ(refusal(writer.set("general.alignment", uint64_t{32})), message);
}

TEST(GgufFormat, ImpossibleDimensions) {
  const auto with_sizes = [](const std::vector<uint64_t>& sizes) {
    GgufWriter writer = small_model("llama");
    writer.tensor("blk.1.attn_q.weight").sizes = sizes;
    return refusal(writer);
  };
  const std::string tensor = "test.gguf: tensor 'blk.1.attn_q.weight' ";
  EXPECT_EQ(with_sizes({}), tensor + "has 0 dimensions, expected 1 to 4");
  EXPECT_EQ(with_sizes({1, 1, 1, 1, 1}), tensor + "has 5 dimensions, expected 1 to 4");
  EXPECT_EQ(with_sizes({64, 0}), tensor + "has an impossible dimension of 0 elements");
  EXPECT_EQ(with_sizes({kHuge, 1}), tensor + fmt::format("has an impossible dimension of {} elements", kHuge));
  EXPECT_EQ(with_sizes({64, ~uint64_t{0}}),
            tensor + fmt::format("has an impossible dimension of {} elements", ~uint64_t{0}));
  // Products that wrap around 2^64 to something small.
  EXPECT_THAT(with_sizes({uint64_t{1} << 32, uint64_t{1} << 32}), StartsWith(tensor + "has an impossible dimension"));
  EXPECT_THAT(with_sizes({uint64_t{1} << 22, uint64_t{1} << 22, uint64_t{1} << 22, 16}),
              StartsWith(tensor + "has an impossible dimension"));
  EXPECT_THAT(with_sizes({uint64_t{1} << 25, uint64_t{1} << 25}), StartsWith(tensor + "needs 4503599627370496 bytes"));
}

TEST(GgufFormat, UnknownTensorTypes) {
  const auto message = [](uint32_t type) {
    return refusal(patched(small_model("llama").bytes(), "blk.1.attn_q.weight", 19 + 4 + 16, type));
  };
  const std::string start = "test.gguf: tensor 'blk.1.attn_q.weight' has ";
  for (const uint32_t type : {static_cast<uint32_t>(GGML_TYPE_COUNT), 1000u, 0xFFFFFFFFu}) {
    EXPECT_EQ(message(type),
              start + fmt::format("the unknown type {}, this ggml has 0 to {}", type, GGML_TYPE_COUNT - 1));
  }
  const std::pair<uint32_t, const char*> former[] = {{4, "Q4_2"},        {5, "Q4_3"},       {31, "Q4_0_4_4"},
                                                     {32, "Q4_0_4_8"},   {33, "Q4_0_8_8"},  {36, "IQ4_NL_4_4"},
                                                     {37, "IQ4_NL_4_8"}, {38, "IQ4_NL_8_8"}};
  for (const auto& [type, name] : former) {
    EXPECT_EQ(
        message(type),
        start + fmt::format("type {} ({}), which ggml no longer reads, expected a file converted anew", type, name));
  }
}

TEST(GgufFormat, QuantisedRowsAreWholeBlocks) {
  GgufWriter writer = small_model("llama");
  writer.tensor("blk.1.attn_q.weight").type = GGML_TYPE_Q4_K;
  EXPECT_EQ(refusal(writer),
            "test.gguf: tensor 'blk.1.attn_q.weight' has rows of 64 elements, expected a multiple of 256 for type "
            "q4_K");
}

TEST(GgufFormat, TensorsOutsideTheFile) {
  const std::string start = "test.gguf: tensor 'output_norm.weight' needs 256 bytes at offset ";
  for (const uint64_t offset : {uint64_t{1} << 20, kHuge, ~uint64_t{31}}) {
    GgufWriter writer = small_model("llama");
    writer.tensor("output_norm.weight").offset = offset;
    EXPECT_EQ(refusal(writer), start + fmt::format("{} of the data, but the file ends at byte {}; is it truncated?",
                                                   offset, writer.bytes().size()));
  }
  GgufWriter writer = small_model("llama");
  writer.tensor("output_norm.weight").offset = 36;
  EXPECT_EQ(refusal(writer), "test.gguf: tensor 'output_norm.weight' begins at offset 36, expected a multiple of 32");
}

TEST(GgufFormat, OverlappingTensors) {
  GgufWriter writer = small_model("llama");
  writer.tensor("output_norm.weight").offset = 0;  // where the embedding is
  EXPECT_THAT(refusal(writer), HasSubstr("overlap"));
  EXPECT_THAT(refusal(writer), HasSubstr("'output_norm.weight'"));
  EXPECT_THAT(refusal(writer), HasSubstr("'token_embd.weight'"));
  writer.tensor("output_norm.weight").offset = 32 * 64 * 4 - 32;  // its last 32 bytes
  EXPECT_EQ(refusal(writer), "test.gguf: tensors 'token_embd.weight' and 'output_norm.weight' overlap");
}

TEST(GgufFormat, TruncatedAtEveryByteOfTheHeader) {
  const GgufWriter writer = small_model("qwen2");
  const Bytes bytes = writer.bytes();
  for (size_t size = 0; size <= writer.header_bytes(); ++size) {
    ASSERT_THAT(refusal(bytes, size),
                testing::AnyOf(HasSubstr("is it truncated?"), HasSubstr("in the file"), HasSubstr("that are left")))
        << "cut at byte " << size;
  }
}

TEST(GgufFormat, TruncatedAnywhereInTheData) {
  const GgufWriter writer = small_model("qwen2");
  const Bytes bytes = writer.bytes();
  ASSERT_EQ(refusal(bytes), "");
  const size_t start = writer.header_bytes(), last = bytes.size() - 1;  // the last tensor needs no padding
  for (size_t i = 0; i < 200; ++i) {
    const size_t size = start + (last - start) * i / 199;
    ASSERT_THAT(refusal(bytes, size), HasSubstr("is it truncated?")) << "cut at byte " << size;
  }
}

TEST(GgufFormat, ARealFileTruncatedAnywhere) {
  const std::string path = TIDAL_SOURCE_DIR "/models/smollm2-135m.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "needs tools/get_model.sh smollm2-135m";
  std::ifstream stream(path, std::ios::binary);
  Bytes bytes(std::filesystem::file_size(path));
  stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(stream);
  ASSERT_EQ(refusal(bytes), "");
  const size_t last = bytes.size() - GGUF_DEFAULT_ALIGNMENT;  // behind it may be only padding
  for (size_t i = 0; i < 200; ++i) {
    // A hundred cuts in the header's first 4 MB (keys, vocabulary, tensors), a hundred over the whole file.
    const size_t size = i < 100 ? (size_t{4} << 20) * i / 100 : last * (i - 99) / 100;
    ASSERT_NE(refusal(bytes, size), "") << "cut at byte " << size;
  }
}

// No byte of the header may make the loader crash or read outside (the sanitizers watch); it may be harmless.
TEST(GgufFormat, EveryByteOfTheHeaderChanged) {
  const GgufWriter writer = small_model("qwen3");
  Bytes bytes = writer.bytes();
  size_t refused = 0;
  for (size_t at = 0; at < writer.header_bytes(); ++at) {
    const std::byte original = bytes[at];
    for (const int change : {0x01, 0x80, 0xFF}) {
      bytes[at] = original ^ static_cast<std::byte>(change);
      const std::string message = refusal(bytes);
      refused += !message.empty();
      ASSERT_THAT(message, testing::AnyOf("", StartsWith("test.gguf: "))) << "byte " << at;
    }
    bytes[at] = original;
  }
  EXPECT_GT(refused, writer.header_bytes());  // most of it matters
  EXPECT_EQ(refusal(bytes), "");
}

TEST(GgufFormat, RandomDamage) {
  const GgufWriter writer = small_model("llama");
  const Bytes sound = writer.bytes();
  std::mt19937 random(11);
  for (int round = 0; round < 3000; ++round) {
    Bytes bytes = sound;
    for (int i = 0; i < 8; ++i) bytes[random() % writer.header_bytes()] = static_cast<std::byte>(random());
    const std::string message = refusal(bytes);
    ASSERT_THAT(message, testing::AnyOf("", StartsWith("test.gguf: "))) << "round " << round;
  }
}

}  // namespace
}  // namespace tidal::test
