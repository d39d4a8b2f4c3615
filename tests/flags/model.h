// A model's shape and plan files for it.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <string>

#include "model/plan.h"

namespace tidal::test {

inline Hyperparameters six_layers() {
  Hyperparameters hp;
  hp.architecture = "llama";
  hp.layers = 6;
  hp.width = 64;
  hp.heads = 4;
  hp.kv_heads = 2;
  hp.head_dim = 16;
  hp.context = 4096;
  return hp;
}

/// A folder that is gone at the end of the test.
class PlanFolder {
 public:
  PlanFolder() : path_(std::filesystem::temp_directory_path() / ("tidal-flags-" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~PlanFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  PlanFolder(const PlanFolder&) = delete;
  PlanFolder& operator=(const PlanFolder&) = delete;

  std::string path(const std::string& name) const { return path_ / name; }
  std::string save(const std::string& name, const Plan& plan) const {
    save_plan(path(name), plan, six_layers());
    return path(name);
  }

 private:
  std::filesystem::path path_;
};

/// One letter a layer: D(ense), S(elect), '.' for Sparse, C for Scan.
inline Plan plan_of(const std::string& letters, const Policy& policy) {
  Plan plan;
  for (const char c : letters) {
    plan.roles.push_back(c == 'D' ? Role::Dense : c == 'S' ? Role::Select : c == 'C' ? Role::Scan : Role::Sparse);
  }
  plan.policy = policy;
  return plan;
}

}  // namespace tidal::test
