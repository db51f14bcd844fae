// What the program builder refuses.

#include <gtest/gtest.h>

#include <stdexcept>

#include "sim/program/program.hpp"

namespace coterie {
namespace {

TEST(ProgramBuilder, RefusesWhatAnEngineCannotRun) {
  ProgramBuilder builder;
  EXPECT_THROW(builder.add_transfer(1, 1, 1.0, kStartEvent, {}), std::logic_error);
  EXPECT_THROW(builder.add_compute(0, -1.0, kStartEvent, {}), std::logic_error);
  EXPECT_THROW(builder.add_compute(0, 1.0, 7, {}), std::logic_error);
  const std::uint32_t never = builder.add_event();
  builder.add_compute(0, 1.0, never, {});
  EXPECT_THROW((void)std::move(builder).finish(), std::logic_error);
}

}  // namespace
}  // namespace coterie
