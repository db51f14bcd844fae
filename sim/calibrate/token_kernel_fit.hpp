#pragma once
// DeepEP's normal kernels inside one node: they are limited by the SMs given to them. With r rows
// of b bytes each arriving per rank (expected distinct ranks per token times tokens),
//
//   time = launch + r * (b + row_overhead) / rate,   rate = (1/(sms*sm_rate)^q + 1/cap^q)^(-1/q)
//          + tokens * token_cost / sms

#include <string>
#include <vector>

#include "sim/calibrate/measurements.hpp"

namespace coterie {

struct TokenKernelCosts {
  double launch_s = 0.0;
  double sm_rate = 0.0;       // bytes per second of one SM
  double cap = 0.0;           // bytes per second, however many SMs
  double row_overhead = 0.0;  // bytes
  double token_cost_s = 0.0;  // SM-seconds per token
  double sharpness = 2.0;
};

enum class TokenKernel : std::uint8_t { kDispatch, kCombine };

double token_kernel_time_s(const TokenKernelCosts& costs, TokenKernel kernel,
                           const TokenKernelPoint& point);
TokenKernelCosts fit_token_kernel(const std::vector<TokenKernelPoint>& points, TokenKernel kernel);

// Expected distinct ranks of a token under uniform routing: P (1 - C(E - E/P, k) / C(E, k)).
double expected_fanout(std::uint32_t num_experts, std::uint32_t num_ranks, std::uint32_t topk);

}  // namespace coterie
