// Expecting a tidal::Error with its whole sentence.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "core/error.h"

namespace tidal::test {

/// The message of the tidal::Error that `function` throws; "no error" when it throws none.
template <typename Function>
std::string error_of(Function&& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace tidal::test
