// Which passes are taken for the same: what a captured graph is found by. Needs no device.
#include "backend/cuda/pass/op_list.h"

#include <gtest/gtest.h>

namespace tidal::cuda {
namespace {

Layer layer_at(uintptr_t address, uint64_t id = 0) {
  Layer layer;
  layer.id = id;
  layer.wq = {.rows = 16, .cols = 16, .data = reinterpret_cast<const std::byte*>(address)};
  return layer;
}

OpList pass_of(const Layer& layer) {
  OpList list;
  list.ops.emplace_back(MlpOp{list.add(layer), nullptr});
  return list;
}

TEST(CudaOpList, LayersWithoutIdsAreTheirWeights) {
  const OpList list = pass_of(layer_at(64));
  EXPECT_EQ(list, pass_of(layer_at(64)));
  EXPECT_NE(list, pass_of(layer_at(128)));
  EXPECT_NE(list, pass_of(layer_at(64, 1)));
}

TEST(CudaOpList, LayersOfTwoModelsAreNeverTheSame) {
  const OpList list = pass_of(layer_at(64, 1));
  EXPECT_EQ(list, pass_of(layer_at(64, 1)));
  EXPECT_NE(list, pass_of(layer_at(64, 2)));
}

TEST(CudaOpList, ALayerIsKeptOnceForWhatFollowsEachOther) {
  OpList list;
  EXPECT_EQ(list.add(layer_at(64, 1)), 0);
  EXPECT_EQ(list.add(layer_at(64, 1)), 0);
  EXPECT_EQ(list.add(layer_at(64, 2)), 1);
  EXPECT_EQ(list.add(layer_at(64)), 2);
  EXPECT_EQ(list.add(layer_at(64)), 2);
  EXPECT_EQ(list.add(layer_at(128)), 3);
}

}  // namespace
}  // namespace tidal::cuda
