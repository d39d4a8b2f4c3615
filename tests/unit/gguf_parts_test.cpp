// Models in several files: found from the first, each part checked, and the same weights as from one file.
#include <cstring>
#include <filesystem>

#include "support/loading.h"

namespace tidal::test {
namespace {

/// Odd sizes, so that paddings of 32 and of 64 bytes differ.
GgufWriter odd_model() {
  return small_model("llama", {.layers = 2, .width = 48, .heads = 3, .kv_heads = 1, .ffn = 80, .vocab = 23});
}

std::string part_name(int index, int count) { return fmt::format("m-{:05}-of-{:05}.gguf", index + 1, count); }

void save(const std::vector<GgufWriter>& parts, const TemporaryFolder& folder) {
  const int count = static_cast<int>(parts.size());
  for (int i = 0; i < count; ++i) parts[static_cast<size_t>(i)].save(folder.file(part_name(i, count)));
}

/// The message without the folder, "" for a model that loads.
std::string refusal_of(const TemporaryFolder& folder, const std::string& name) {
  try {
    const GgufFile file = GgufFile::open(folder.file(name));
    read_weights(file, read_hyperparameters(file));
    return "";
  } catch (const Error& error) {
    std::string message = error.what();
    const std::string prefix = folder.file("");
    if (message.starts_with(prefix)) message.erase(0, prefix.size());
    return message;
  }
}

void expect_same_tensors(const GgufFile& file, const GgufFile& whole) {
  ASSERT_EQ(file.tensors().size(), whole.tensors().size());
  for (const auto& [name, weight] : whole.tensors()) {
    const auto found = file.tensors().find(name);
    ASSERT_NE(found, file.tensors().end()) << name;
    ASSERT_EQ(found->second.bytes(), weight.bytes()) << name;
    EXPECT_EQ(std::memcmp(found->second.data, weight.data, weight.bytes()), 0) << name;
  }
}

TEST(GgufParts, TheSameTensorsAsInOneFile) {
  // llama.cpp's gguf-split pads the other parts to 32 bytes, gguf-py to what the first part says.
  for (const uint32_t alignment : {0u, 8u, 32u, 64u, 256u, 4096u}) {
    for (const bool alike : {false, true}) {
      for (const int count : {2, 3, 7}) {
        SCOPED_TRACE(fmt::format("alignment {}, padded alike {}, {} parts", alignment, alike, count));
        GgufWriter writer = odd_model();
        if (alignment > 0) writer.set("general.alignment", alignment);
        const TemporaryFolder folder;
        writer.save(folder.file("whole.gguf"));
        save(writer.split(count, alike), folder);
        const GgufFile whole = GgufFile::open(folder.file("whole.gguf"));
        const GgufFile file = GgufFile::open(folder.file(part_name(0, count)));
        expect_same_tensors(file, whole);
        EXPECT_EQ(file.integer("llama.block_count"), 2);
        int64_t bytes = 0;
        for (int i = 0; i < count; ++i) {
          bytes += static_cast<int64_t>(std::filesystem::file_size(folder.file(part_name(i, count))));
        }
        EXPECT_EQ(file.file_bytes(), bytes);
        EXPECT_EQ(refusal_of(folder, part_name(0, count)), "");
      }
    }
  }
}

TEST(GgufParts, APartsOwnAlignmentAndOneWithoutTensors) {
  GgufWriter writer = odd_model();
  writer.set("general.alignment", 64u);
  std::vector<GgufWriter> parts = writer.split(3);
  parts[1].set("general.alignment", 128u);
  const TemporaryFolder folder;
  save(parts, folder);
  writer.save(folder.file("whole.gguf"));
  expect_same_tensors(GgufFile::open(folder.file(part_name(0, 3))), GgufFile::open(folder.file("whole.gguf")));

  // gguf-split --no-tensor-first-split
  parts = writer.split(2);
  std::vector<GgufWriter> more = {GgufWriter(), parts[0], parts[1]};
  const GgufWriter keys = writer.split(1)[0];
  more[0] = keys;
  const GgufFile whole = GgufFile::open(folder.file("whole.gguf"));
  for (const auto& [name, weight] : whole.tensors()) more[0].erase_tensor(name);
  for (int i = 0; i < 3; ++i) {
    more[static_cast<size_t>(i)].set("split.no", static_cast<uint16_t>(i)).set("split.count", uint16_t{3});
  }
  const TemporaryFolder other;
  save(more, other);
  expect_same_tensors(GgufFile::open(other.file(part_name(0, 3))), whole);
}

TEST(GgufParts, PartsThatAreMissing) {
  const TemporaryFolder folder;
  save(odd_model().split(4), folder);
  std::filesystem::remove(folder.file(part_name(1, 4)));
  std::filesystem::remove(folder.file(part_name(3, 4)));
  EXPECT_EQ(refusal_of(folder, part_name(0, 4)),
            "m-00001-of-00004.gguf: is the first of 4 parts, and these are missing beside it: m-00002-of-00004.gguf, "
            "m-00004-of-00004.gguf");
  // A count that nobody could have written must not take long either.
  GgufWriter many = odd_model().split(2)[0];
  many.set("split.count", uint16_t{65535});
  many.save(folder.file("m-00001-of-65535.gguf"));
  EXPECT_THAT(refusal_of(folder, "m-00001-of-65535.gguf"), testing::HasSubstr("m-00011-of-65535.gguf and 65524 more"));
}

TEST(GgufParts, NotTheFirst) {
  const TemporaryFolder folder;
  save(odd_model().split(3), folder);
  EXPECT_EQ(refusal_of(folder, part_name(1, 3)),
            "m-00002-of-00003.gguf: is part 2 of 3 of a split model, expected the first, m-00001-of-00003.gguf");
  std::filesystem::rename(folder.file(part_name(2, 3)), folder.file("last.gguf"));
  EXPECT_EQ(refusal_of(folder, "last.gguf"),
            "last.gguf: is part 3 of 3 of a split model, expected the first, whose name ends in -00001-of-00003.gguf");
  std::filesystem::rename(folder.file(part_name(0, 3)), folder.file("first.gguf"));
  EXPECT_EQ(
      refusal_of(folder, "first.gguf"),
      "first.gguf: is the first of 3 parts of a split model, expected a name that ends in -00001-of-00003.gguf so "
      "that the others can be found");
}

TEST(GgufParts, ForeignAndDoubleParts) {
  const TemporaryFolder folder;
  const std::vector<GgufWriter> parts = odd_model().split(3);
  const auto refused = [&](const GgufWriter& second) {
    save(parts, folder);
    second.save(folder.file(part_name(1, 3)));
    return refusal_of(folder, part_name(0, 3));
  };
  EXPECT_EQ(refused(parts[1]), "");
  EXPECT_EQ(refused(parts[2]), "m-00002-of-00003.gguf: says that it is part 3 (split.no), expected part 2 of 3");
  EXPECT_EQ(refused(odd_model().split(4)[1]),
            "m-00002-of-00003.gguf: is part 2 of 4, expected part 2 of 3 of the model that begins with "
            "m-00001-of-00003.gguf");
  EXPECT_EQ(refused(odd_model()),
            "m-00002-of-00003.gguf: is a whole file, expected part 2 of 3 of the model that begins with "
            "m-00001-of-00003.gguf");
  EXPECT_EQ(refused(small_model("llama", {.layers = 3}).split(3)[1]),
            "m-00002-of-00003.gguf: is a part of a model of 29 tensors, but m-00001-of-00003.gguf begins one of 20");

  GgufWriter twice = parts[0];
  twice.set("split.no", uint16_t{1});
  EXPECT_THAT(refused(twice), testing::MatchesRegex("m-00002-of-00003.gguf: tensor '.*' stands in .*"
                                                    "m-00001-of-00003.gguf, too"));
  GgufWriter less = parts[1];
  less.erase_tensor("blk.0.ffn_up.weight");
  EXPECT_EQ(refused(less), "m-00001-of-00003.gguf: its 3 parts hold 19 tensors, expected 20 (split.tensors.count)");
}

TEST(GgufParts, KeysOfAWrongTypeOrMissing) {
  const TemporaryFolder folder;
  const auto refused = [&](const auto& change) {
    std::vector<GgufWriter> parts = odd_model().split(2);
    change(parts);
    save(parts, folder);
    return refusal_of(folder, part_name(0, 2));
  };
  const std::string first = "m-00001-of-00002.gguf: ", second = "m-00002-of-00002.gguf: ";
  EXPECT_EQ(refused([](auto& parts) { parts[0].set("split.count", 2u); }),
            first + "key 'split.count' has type u32, expected u16");
  EXPECT_EQ(refused([](auto& parts) { parts[1].set("split.no", 1); }),
            second + "key 'split.no' has type i32, expected u16");
  EXPECT_EQ(refused([](auto& parts) { parts[0].set("split.tensors.count", 20u); }),
            first + "key 'split.tensors.count' has type u32, expected i32");
  EXPECT_EQ(refused([](auto& parts) { parts[0].set("split.no", uint16_t{2}); }),
            first + "key 'split.no' is 2, expected less than split.count, 2");
  EXPECT_EQ(refused([](auto& parts) { parts[1].erase("split.no"); }),
            second + "key 'split.no' is missing in a part of a split model");
  EXPECT_EQ(refused([](auto& parts) { parts[0].erase("split.tensors.count"); }),
            first + "key 'split.tensors.count' is missing in a part of a split model");
}

TEST(GgufParts, WhatIsNotFilledExactly) {
  GgufWriter writer = odd_model();
  writer.set("general.alignment", 64u);
  const TemporaryFolder folder;
  const auto damaged = [&](int part, ptrdiff_t change) {
    save(writer.split(2, true), folder);
    const std::string path = folder.file(part_name(part, 2));
    std::filesystem::resize_file(path, std::filesystem::file_size(path) + change);
    return refusal_of(folder, part_name(0, 2));
  };
  EXPECT_EQ(damaged(1, 0), "");
  EXPECT_THAT(damaged(1, 1), testing::MatchesRegex("m-00002-of-00002.gguf: 10 tensors aligned to 64 or 32 bytes do not "
                                                   "fill the part's [0-9]+ bytes exactly; is it truncated.*"));
  EXPECT_THAT(damaged(1, -64), testing::HasSubstr("do not fill the part's"));
  EXPECT_EQ(
      damaged(0, 64),
      "m-00001-of-00002.gguf: its tensors and their padding do not fill it exactly, as those of a part of a split "
      "model must");
  // Padded by something that no part names: right nowhere, and refused for it.
  std::vector<GgufWriter> parts = writer.split(2);
  parts[1].padding = 128;
  save(parts, folder);
  EXPECT_THAT(refusal_of(folder, part_name(0, 2)), testing::HasSubstr("do not fill the part's"));
}

TEST(GgufParts, PartsInMemory) {
  const std::vector<GgufWriter> parts = odd_model().split(2);
  const Bytes first = parts[0].bytes(), second = parts[1].bytes(), whole = odd_model().bytes();
  const GgufBytes both[] = {{"a", first.data(), first.size()}, {"b", second.data(), second.size()}};
  expect_same_tensors(GgufFile::parse(both), GgufFile::parse(whole.data(), whole.size(), "whole"));
  EXPECT_EQ(refusal(first), "test.gguf: is a part of a model of 2, but 1 are given");
}

}  // namespace
}  // namespace tidal::test
