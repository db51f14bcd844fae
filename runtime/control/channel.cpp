#include "runtime/control/channel.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>

namespace coterie {
namespace {

constexpr std::size_t kHeaderBytes = 16;
constexpr std::uint64_t kMaxBodyBytes = std::uint64_t{1} << 32U;

struct Header {
  std::uint32_t type = 0;
  std::uint32_t zero = 0;
  std::uint64_t length = 0;
};
static_assert(sizeof(Header) == kHeaderBytes);

struct AddressList {
  explicit AddressList(addrinfo* list) : list_(list, ::freeaddrinfo) {}
  std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list_;
};

std::optional<AddressList> resolve(const std::string& address, std::uint16_t port, int flags,
                                   std::string& reason) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* list = nullptr;
  const int error = ::getaddrinfo(address.empty() ? nullptr : address.c_str(),
                                  std::to_string(port).c_str(), &hints, &list);
  if (error != 0) {
    reason = ::gai_strerror(error);
    return std::nullopt;
  }
  return AddressList(list);
}

void set_no_delay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

}  // namespace

void Descriptor::reset() noexcept {
  if (fd_ != kNone) ::close(std::exchange(fd_, kNone));
}

void set_non_blocking(int fd) {
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
}

Descriptor listen_on(const std::string& address, std::uint16_t port) {
  std::string reason;
  const auto addresses = resolve(address, port, AI_PASSIVE, reason);
  if (addresses) {
    for (const addrinfo* entry = addresses->list_.get(); entry != nullptr; entry = entry->ai_next) {
      Descriptor socket(::socket(entry->ai_family, entry->ai_socktype | SOCK_CLOEXEC, 0));
      if (!socket.open()) continue;
      const int on = 1;
      ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
      if (::bind(socket.get(), entry->ai_addr, entry->ai_addrlen) == 0 &&
          ::listen(socket.get(), 1024) == 0) {
        return socket;
      }
      reason = std::strerror(errno);
    }
  }
  throw DeviceError(
      fmt::format("rank 0 cannot listen for the other ranks at {}:{}: {}", address, port, reason));
}

std::uint16_t bound_port(const Descriptor& socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {  // NOLINT
    throw DeviceError(fmt::format("getsockname failed: {}", std::strerror(errno)));
  }
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&address);  // NOLINT
  const auto* v4 = reinterpret_cast<const sockaddr_in*>(&address);   // NOLINT
  return ntohs(address.ss_family == AF_INET6 ? v6->sin6_port : v4->sin_port);
}

Descriptor try_connect(const std::string& address, std::uint16_t port, double timeout_s,
                       std::string& reason) {
  const auto addresses = resolve(address, port, 0, reason);
  if (!addresses) return {};
  for (const addrinfo* entry = addresses->list_.get(); entry != nullptr; entry = entry->ai_next) {
    Descriptor socket(::socket(entry->ai_family, entry->ai_socktype | SOCK_CLOEXEC, 0));
    if (!socket.open()) continue;
    set_non_blocking(socket.get());
    if (::connect(socket.get(), entry->ai_addr, entry->ai_addrlen) != 0 && errno != EINPROGRESS) {
      reason = std::strerror(errno);
      continue;
    }
    pollfd waiting{socket.get(), POLLOUT, 0};
    if (::poll(&waiting, 1, static_cast<int>(timeout_s * 1000)) <= 0) {
      reason = "no answer";
      continue;
    }
    int error = 0;
    socklen_t length = sizeof error;
    ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) {
      reason = std::strerror(error);
      continue;
    }
    set_no_delay(socket.get());
    return socket;
  }
  return {};
}

void Channel::queue(std::uint32_t type, std::string_view body) {
  if (sent_ == out_.size()) {
    out_.clear();
    sent_ = 0;
  }
  const Header header{type, 0, body.size()};
  out_.append(reinterpret_cast<const char*>(&header), sizeof header);  // NOLINT
  out_.append(body);
}

bool Channel::send_some() {
  while (wants_to_send()) {
    const ssize_t count =
        ::send(fd(), out_.data() + sent_, out_.size() - sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0) {
      if (errno == EINTR) continue;
      return errno == EAGAIN || errno == EWOULDBLOCK;
    }
    sent_ += static_cast<std::size_t>(count);
  }
  return true;
}

bool Channel::receive_some() {
  std::array<char, 1U << 16U> buffer;  // NOLINT: filled by recv
  while (true) {
    const ssize_t count = ::recv(fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (count > 0) {
      in_.append(buffer.data(), static_cast<std::size_t>(count));
      if (static_cast<std::size_t>(count) < buffer.size()) return true;
      continue;
    }
    if (count == 0) return false;
    if (errno == EINTR) continue;
    return errno == EAGAIN || errno == EWOULDBLOCK;
  }
}

std::optional<Frame> Channel::next() {
  if (in_.size() - taken_ < kHeaderBytes) return std::nullopt;
  Header header;
  std::memcpy(&header, in_.data() + taken_, sizeof header);
  if (header.zero != 0 || header.length > kMaxBodyBytes) {
    throw DeviceError("a peer of the control connection speaks another protocol");
  }
  if (in_.size() - taken_ - kHeaderBytes < header.length) return std::nullopt;
  Frame frame{header.type, in_.substr(taken_ + kHeaderBytes, header.length)};
  taken_ += kHeaderBytes + header.length;
  if (taken_ == in_.size() || taken_ > (1U << 20U)) {
    in_.erase(0, taken_);
    taken_ = 0;
  }
  return frame;
}

}  // namespace coterie
