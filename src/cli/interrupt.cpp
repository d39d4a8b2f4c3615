#include "cli/interrupt.h"

#include <csignal>

namespace tidal {
namespace {

volatile std::sig_atomic_t raised_flag = 0;
struct sigaction previous_action;

}  // namespace

Interrupt::Interrupt() {
  raised_flag = 0;
  struct sigaction action {};
  action.sa_handler = [](int) { raised_flag = 1; };
  action.sa_flags = SA_RESETHAND;  // the next one acts as if nobody listened
  sigaction(SIGINT, &action, &previous_action);
}

Interrupt::~Interrupt() { sigaction(SIGINT, &previous_action, nullptr); }

bool Interrupt::raised() const { return raised_flag != 0; }

}  // namespace tidal
