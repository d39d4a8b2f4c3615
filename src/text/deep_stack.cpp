#include "text/deep_stack.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <exception>

#include "core/error.h"

namespace tidal {
namespace {

// libllama calls the program's own instance of std::regex where there is one, so it matters how that was compiled:
// AddressSanitizer's takes 460 to 1,180 bytes a character, all others about as much as libllama's.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TIDAL_ADDRESS_SANITIZER
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define TIDAL_ADDRESS_SANITIZER
#endif
#ifdef TIDAL_ADDRESS_SANITIZER
constexpr size_t kStackPerCharacter = 4096;
#else
constexpr size_t kStackPerCharacter = 1024;
#endif
/// For everything but the recursion, several times what it takes (16 kB).
constexpr size_t kStackBeside = size_t{256} << 10;

bool is_ascii_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/// Whether a character that begins here may be white space to std::regex or to Unicode; true for some that are none.
bool may_be_space(std::string_view text, size_t at) {
  const auto byte = static_cast<uint8_t>(text[at]);
  if (byte < 0x80) return is_ascii_space(text[at]);
  const uint8_t next = at + 1 < text.size() ? static_cast<uint8_t>(text[at + 1]) : 0;
  return (byte == 0xC2 && (next == 0x85 || next == 0xA0)) ||  // U+0085, U+00A0
         (byte == 0xE1 && next == 0x9A) ||                    // U+1680
         (byte == 0xE2 && (next == 0x80 || next == 0x81)) ||  // U+2000 to U+200A, U+2028, U+2029, U+202F, U+205F
         (byte == 0xE3 && next == 0x80);                      // U+3000
}

/// Characters of the longest part of `text` that one match can cover: what is no white space, and the white space after
/// it.
size_t longest_match(std::string_view text) {
  size_t longest = 0, here = 0;
  bool space = false;
  for (size_t at = 0; at < text.size(); ++at) {
    if ((static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) continue;  // inside a character
    if (space && !may_be_space(text, at)) here = 0;
    space = is_ascii_space(text[at]);
    longest = std::max(longest, ++here);
  }
  return longest + 1;  // the character that leads
}

struct Call {
  const std::function<void()>& work;
  std::exception_ptr error;
};

void* run(void* argument) {
  Call& call = *static_cast<Call*>(argument);
  try {
    call.work();
  } catch (...) {
    call.error = std::current_exception();
  }
  return nullptr;
}

/// Memory for a stack, with a page below it that ends the program rather than let it write elsewhere.
class Stack {
 public:
  explicit Stack(size_t bytes) : guard_(static_cast<size_t>(::sysconf(_SC_PAGESIZE))) {
    bytes_ = (bytes + guard_ - 1) / guard_ * guard_;
    memory_ = ::mmap(nullptr, guard_ + bytes_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) {
      fail("text: libllama's tokenizer needs a stack of {} MiB for it: {}", bytes_ >> 20, std::strerror(errno));
    }
    ::mprotect(memory_, guard_, PROT_NONE);
  }
  ~Stack() { ::munmap(memory_, guard_ + bytes_); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  void* begin() const { return static_cast<char*>(memory_) + guard_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t guard_, bytes_ = 0;
  void* memory_ = nullptr;
};

}  // namespace

size_t pretokenizer_stack(std::string_view text) { return kStackBeside + longest_match(text) * kStackPerCharacter; }

bool pretokenizer_recurses(const std::string& pre) {
  static constexpr std::string_view kWrittenOut[] = {"llama3",  "llama-v3",  "llama-bpe", "qwen2", "deepseek-r1-qwen",
                                                     "gpt-2",   "smaug-bpe", "smollm",    "dbrx",  "starcoder",
                                                     "refact",  "mpt",       "stablelm2", "olmo",  "codeshell",
                                                     "exaone4", "hunyuan",   "trillion"};
  return std::find(std::begin(kWrittenOut), std::end(kWrittenOut), pre) == std::end(kWrittenOut);
}

void run_on_stack(size_t bytes, const std::function<void()>& work) {
  const Stack stack(bytes);
  Call call{work, nullptr};
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  int status = pthread_attr_setstack(&attributes, stack.begin(), stack.bytes());
  pthread_t thread = {};
  if (status == 0) status = pthread_create(&thread, &attributes, run, &call);
  pthread_attr_destroy(&attributes);
  if (status != 0) fail("text: no thread can be started for libllama's tokenizer: {}", std::strerror(status));
  pthread_join(thread, nullptr);
  if (call.error) std::rethrow_exception(call.error);
}

}  // namespace tidal
