#include "server/client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

namespace tidal::test {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

std::string HttpAnswer::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

Client::Client(int port, const std::string& host, int receive_buffer) {
  sockaddr_in v4{};
  sockaddr_in6 v6{};
  const bool is_v6 = host.find(':') != std::string::npos;
  v4.sin_family = AF_INET;
  v4.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, host.c_str(), &v4.sin_addr);
  v6.sin6_family = AF_INET6;
  v6.sin6_port = v4.sin_port;
  inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr);
  socket_ = ::socket(is_v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket_ < 0) return;
  if (receive_buffer > 0) setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
  const int on = 1;
  setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const auto* address = is_v6 ? reinterpret_cast<const sockaddr*>(&v6) : reinterpret_cast<const sockaddr*>(&v4);
  if (::connect(socket_, address, is_v6 ? sizeof v6 : sizeof v4) != 0) close();
}

Client::Client(Client&& other) noexcept
    : socket_(std::exchange(other.socket_, -1)), reset_(other.reset_), input_(std::move(other.input_)) {}

Client::~Client() { close(); }

void Client::close() {
  if (socket_ >= 0) ::close(std::exchange(socket_, -1));
}

void Client::half_close() { ::shutdown(socket_, SHUT_WR); }

bool Client::send(std::string_view bytes, milliseconds time) {
  while (!bytes.empty()) {
    pollfd wait{socket_, POLLOUT, 0};
    if (::poll(&wait, 1, static_cast<int>(time.count())) <= 0) return false;
    const ssize_t count = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno != EAGAIN && errno != EINTR) {
      reset_ = errno == ECONNRESET || errno == EPIPE;
      return false;
    }
    if (count > 0) bytes.remove_prefix(static_cast<size_t>(count));
  }
  return true;
}

bool Client::more(milliseconds time) {
  pollfd wait{socket_, POLLIN, 0};
  if (::poll(&wait, 1, static_cast<int>(time.count())) <= 0) return false;
  char bytes[65536];
  const ssize_t count = ::recv(socket_, bytes, sizeof bytes, 0);
  if (count < 0 && errno == ECONNRESET) reset_ = true;
  if (count <= 0) return false;
  input_.append(bytes, static_cast<size_t>(count));
  return true;
}

std::string Client::receive(milliseconds time) {
  if (input_.empty()) more(time);
  return std::exchange(input_, {});
}

std::string Client::receive_until(std::string_view end) {
  size_t at;
  while ((at = input_.find(end)) == std::string::npos) {
    if (!more()) return "";
  }
  std::string out = input_.substr(0, at + end.size());
  input_.erase(0, out.size());
  return out;
}

HttpAnswer Client::answer(bool head) {
  HttpAnswer out;
  const std::string text = receive_until("\r\n\r\n");
  if (text.size() < 12) return out;
  out.version = text.substr(0, 8);
  for (size_t from = text.find("\r\n") + 2; from + 2 < text.size();) {
    const size_t to = text.find("\r\n", from);
    const size_t colon = text.find(": ", from);
    std::string name = text.substr(from, colon - from);
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    out.headers[name] = text.substr(colon + 2, to - colon - 2);
    from = to + 2;
  }
  const int status = std::atoi(text.c_str() + 9);
  if (head || status == 204 || status < 200) {
    out.status = status;
    return out;
  }
  if (out.header("transfer-encoding") == "chunked") {
    for (;;) {
      const std::string line = receive_until("\r\n");
      if (line.empty()) return out;
      const size_t size = std::strtoul(line.c_str(), nullptr, 16);
      while (input_.size() < size + 2) {
        if (!more()) return out;
      }
      out.body += input_.substr(0, size);
      if (input_.substr(size, 2) != "\r\n") return out;
      input_.erase(0, size + 2);
      if (size == 0) break;
    }
  } else if (!out.header("content-length").empty()) {
    const size_t size = std::strtoul(out.header("content-length").c_str(), nullptr, 10);
    while (input_.size() < size) {
      if (!more()) return out;
    }
    out.body = input_.substr(0, size);
    input_.erase(0, size);
  } else {
    while (more()) {
    }
    out.body = std::exchange(input_, {});
  }
  out.status = status;
  return out;
}

bool Client::closed(milliseconds time) {
  const auto until = Clock::now() + time;
  for (;;) {
    const auto left = std::chrono::duration_cast<milliseconds>(until - Clock::now());
    if (left.count() <= 0) return false;
    pollfd wait{socket_, POLLIN, 0};
    if (::poll(&wait, 1, static_cast<int>(left.count())) <= 0) return false;
    if (!more(milliseconds(0))) return true;
  }
}

}  // namespace tidal::test
