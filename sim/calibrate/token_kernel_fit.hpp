#pragma once
// DeepEP's normal kernels inside one node: they are limited by the SMs given to them. With r rows
// of b bytes each arriving per rank (expected distinct ranks per token times tokens),
//
//   time = launch + fill_rows * b / sm_rate + r * (b + row_overhead) / rate
//          + tokens * token_cost / sms,          rate = (1/(sms*sm_rate)^q + 1/cap^q)^(-1/q)
//
// fill_rows: rows of one SM's chunk that are under way before the next stage sees the first, so
// that even a small batch takes longer with longer rows, however many SMs there are. Without it
// small batches of short rows came out up to 49 percent too long where their shape was left out.

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
  double fill_rows = 0.0;  // of one SM
};

enum class TokenKernel : std::uint8_t { kDispatch, kCombine };

double token_kernel_time_s(const TokenKernelCosts& costs, TokenKernel kernel,
                           const TokenKernelPoint& point);
TokenKernelCosts fit_token_kernel(const std::vector<TokenKernelPoint>& points, TokenKernel kernel);

}  // namespace coterie
