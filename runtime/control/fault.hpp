#pragma once
// Faults on demand, so that the tests can kill, stop or hang a rank at any stage.
//
// COTERIE_FAULT=RANK:POINT:ACTION, e.g. "2:dispatch:kill". Actions: kill (SIGKILL), stop (SIGSTOP),
// hang (the main thread sleeps for ever, the heartbeat goes on), exit (leaves without a word),
// throw (a DeviceError), corrupt (the caller damages its data). Points, in the order in which a run
// passes them:
//   start, rendezvous, init, dispatch and combine (of the verification: the others wait inside
//   NCCL), output (of the verification), warm-up, in-flight (the device is at work on an
//   iteration), report

#include <cstdint>
#include <string_view>

namespace coterie {

// Does what COTERIE_FAULT asks of this rank at this point; returns at once otherwise. True where
// the caller is to corrupt its data. Throws InputError for a malformed variable.
bool fault_point(std::uint32_t rank, std::string_view point);

}  // namespace coterie
