// Tests that run on every backend, and are skipped where one has no device.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "backend/backend.h"
#include "support/small_device.h"

namespace tidal::test {

/// All backends. A new one joins here and in parity/setup.h.
inline const std::vector<std::string> kBackends = {"reference", "cpu", "cuda"};

/// The backend of a test's parameters: the whole, or the first of several.
inline const std::string& backend_of(const std::string& parameter) { return parameter; }
template <typename... Others>
const std::string& backend_of(const std::tuple<std::string, Others...>& parameters) {
  return std::get<0>(parameters);
}

template <typename Parameters>
class BackendTest : public testing::TestWithParam<Parameters> {
 protected:
  void SetUp() override {
    be_small_if_asked();
    if (backend_of(this->GetParam()) == "cuda" && !has_cuda_device()) GTEST_SKIP() << "no CUDA device";
  }
};

}  // namespace tidal::test
