#pragma once
// Waiting for a device under the eyes of the control group: a peer's death, or the group's deadline,
// ends every wait.

#include <functional>

#include "runtime/control/group.hpp"

namespace coterie {

// Returns once `done` does, in the group's current stage. Every few milliseconds it looks around: the
// group's verdict, what `look` throws, and the group's step deadline end the wait.
void poll_until(ControlGroup& group, const std::function<bool()>& done,
                const std::function<void()>& look);

// CUDA and NCCL often notice a dead peer before the control group does, but cannot name it. Called
// with such an error in hand: waits as long as the group needs to notice, and throws its verdict if
// one comes.
void await_verdict(ControlGroup& group);

}  // namespace coterie
