//! A fake world performs the effects, in any order and with any outcome, while requests and the VMM's end come at
//! any moment. In the end nothing may be left of it.

use proptest::prelude::*;

use super::*;

const REQUESTS: [Request; 5] =
    [Request::Start, Request::Pause, Request::Resume, Request::Stop, Request::Kill];

/// The host as it really is, beside what the machine thinks of it.
#[derive(Debug, Default)]
struct World {
    machine: Machine,
    directory: bool,
    socket: bool,
    /// The VMM's process is there, ended but not waited for yet included.
    process: bool,
    /// It has spawned; the exit has not been reported.
    exit_due: bool,
    in_flight: Vec<Effect>,
    /// Every outcome reported so far, for the message of a failed test.
    history: Vec<Event>,
}

impl World {
    fn tell(&mut self, event: Event) -> Result<(), Refused> {
        self.history.push(event);
        let before = self.machine;
        let decided = decide(before, event);
        if let Err(refused) = decided {
            assert!(matches!(event, Event::Asked(_)), "{event:?} was refused: {:?}", self.history);
            assert_eq!((refused.state, refused.allowed), (before.state(), before.state().allowed()));
            return Err(refused);
        }
        let (machine, effects) = decided.unwrap();
        self.machine = machine;
        self.in_flight.extend(effects);
        self.check();
        Ok(())
    }

    /// What must hold after every event.
    fn check(&self) {
        let (held, state) = (self.machine.held(), self.machine.state());
        for resource in &held {
            assert!(state.may_hold().contains(resource), "{state:?} holds {resource:?}: {:?}", self.history);
        }
        let there = [
            (Resource::Directory, self.directory),
            (Resource::Socket, self.socket),
            (Resource::Process, self.process),
        ];
        for (resource, there) in there {
            assert!(!there || held.contains(&resource), "{resource:?} is forgotten: {:?}", self.history);
        }
        let releases = self.in_flight.iter().filter(|effect| matches!(effect, Effect::Release(_))).count();
        assert!(releases <= 1, "two releases at once: {:?}", self.history);
    }

    /// Performs one of the effects in flight, with success or not.
    fn perform(&mut self, choice: usize, succeeds: bool) {
        if self.in_flight.is_empty() {
            return;
        }
        let effect = self.in_flight.swap_remove(choice % self.in_flight.len());
        let event = match effect {
            Effect::MakeDirectory => {
                assert!(!self.directory, "made twice: {:?}", self.history);
                self.directory = succeeds;
                if succeeds { Event::DirectoryMade } else { Event::DirectoryFailed }
            }
            Effect::SpawnVmm => {
                assert!(self.directory && !self.process, "{:?}", self.history);
                if succeeds {
                    (self.process, self.socket, self.exit_due) = (true, true, true);
                    // The VMM may be gone before the owner has heard that it came.
                    if choice.is_multiple_of(5) {
                        self.exit(VmmExit::Code(1));
                    }
                    Event::VmmSpawned
                } else {
                    Event::SpawnFailed
                }
            }
            Effect::BootVm => {
                if succeeds && self.process {
                    Event::Booted
                } else {
                    Event::BootFailed
                }
            }
            Effect::PauseVm => {
                if succeeds && self.process {
                    Event::VmPaused
                } else {
                    Event::PauseFailed
                }
            }
            Effect::ResumeVm => {
                if succeeds && self.process {
                    Event::VmResumed
                } else {
                    Event::ResumeFailed
                }
            }
            Effect::StopVmm | Effect::KillVmm => {
                if succeeds || !self.process {
                    self.exit(VmmExit::Signal(9));
                    return;
                }
                Event::StopFailed
            }
            Effect::Release(resource) => {
                let place = match resource {
                    Resource::Directory => &mut self.directory,
                    Resource::Socket => &mut self.socket,
                    Resource::Process => panic!("the process is released by its exit"),
                };
                assert!(*place, "{resource:?} is released twice: {:?}", self.history);
                assert!(!self.process, "{resource:?} is released under a living VMM: {:?}", self.history);
                *place = !succeeds;
                if succeeds { Event::Released(resource) } else { Event::ReleaseFailed(resource) }
            }
        };
        self.tell(event).unwrap();
    }

    /// The VMM ends, and its exit is reported, once.
    fn exit(&mut self, exit: VmmExit) {
        if self.exit_due {
            (self.process, self.exit_due) = (false, false);
            self.tell(Event::VmmExited(exit)).unwrap();
        }
    }

    /// From now on all goes well.
    fn settle(&mut self) {
        while !self.in_flight.is_empty() {
            self.perform(1, true);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Ask(Request),
    Perform { choice: usize, succeeds: bool },
    VmmEnds(VmmExit),
}

fn step() -> impl Strategy<Value = Step> {
    let exit = prop_oneof![(0i32..3).prop_map(VmmExit::Code), Just(VmmExit::Signal(11))];
    prop_oneof![
        3 => prop::sample::select(&REQUESTS[..]).prop_map(Step::Ask),
        // Start comes often, or most cases would end before they began.
        2 => Just(Step::Ask(Request::Start)),
        8 => (0usize..10, prop::bool::weighted(0.8)).prop_map(|(choice, succeeds)| Step::Perform { choice, succeeds }),
        1 => exit.prop_map(Step::VmmEnds),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_happens_nothing_is_left_once_the_machine_has_ended(
        steps in prop::collection::vec(step(), 0..60),
        last in prop_oneof![Just(Request::Stop), Just(Request::Kill)],
    ) {
        let mut world = World::default();
        for step in steps {
            match step {
                Step::Ask(request) => {
                    let allowed = world.machine.state().allowed().contains(&request);
                    prop_assert_eq!(world.tell(Event::Asked(request)).is_ok(), allowed);
                }
                Step::Perform { choice, succeeds } => world.perform(choice, succeeds),
                Step::VmmEnds(exit) => world.exit(exit),
            }
        }
        world.settle();
        world.tell(Event::Asked(last)).unwrap();
        world.settle();
        prop_assert!(world.machine.state().is_final(), "{:?}", world);
        prop_assert_eq!(world.machine.held(), []);
        prop_assert!(!world.directory && !world.socket && !world.process, "{:?}", world);
    }

    /// Even events that no effect can have caused break nothing.
    #[test]
    fn an_ended_machine_stays_as_it_is(
        events in prop::collection::vec(any_event(), 0..40),
        after in prop::collection::vec(any_event(), 0..20),
    ) {
        let mut machine = Machine::default();
        for event in events {
            if let Ok((next, _)) = decide(machine, event) {
                machine = next;
            }
            prop_assert!(machine.held().iter().all(|resource| machine.state().may_hold().contains(resource)));
        }
        if machine.state().is_final() {
            for event in after {
                if let Ok((next, effects)) = decide(machine, event) {
                    prop_assert_eq!((next, effects), (machine, vec![]));
                }
            }
        }
    }

    #[test]
    fn the_exit_is_taken_in_every_state(events in prop::collection::vec(any_event(), 0..40)) {
        let mut machine = Machine::default();
        for event in events {
            let exited = decide(machine, Event::VmmExited(VmmExit::Code(0)));
            prop_assert!(exited.is_ok_and(|(next, _)| !next.held().contains(&Resource::Process)));
            machine = decide(machine, event).map_or(machine, |(next, _)| next);
        }
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let resource = prop::sample::select(&[Resource::Directory, Resource::Socket, Resource::Process][..]);
    prop_oneof![
        4 => prop::sample::select(&REQUESTS[..]).prop_map(Event::Asked),
        8 => prop::sample::select(&[
            Event::DirectoryMade, Event::DirectoryFailed, Event::VmmSpawned, Event::SpawnFailed, Event::Booted,
            Event::BootFailed, Event::VmPaused, Event::PauseFailed, Event::VmResumed, Event::ResumeFailed,
            Event::StopFailed, Event::VmmExited(VmmExit::Code(0)),
        ][..]),
        2 => resource.clone().prop_map(Event::Released),
        1 => resource.prop_map(Event::ReleaseFailed),
    ]
}

/// The machine after these events, and the effects of the last one.
fn after(events: &[Event]) -> (Machine, Vec<Effect>) {
    let begin = (Machine::default(), vec![]);
    events.iter().fold(begin, |(machine, _), event| decide(machine, *event).unwrap())
}

const RUNNING: [Event; 4] =
    [Event::Asked(Request::Start), Event::DirectoryMade, Event::VmmSpawned, Event::Booted];

fn running_and(events: &[Event]) -> (Machine, Vec<Effect>) {
    after(&[&RUNNING, events].concat())
}

#[test]
fn a_start_goes_step_by_step() {
    let expected: [&[Effect]; 4] = [&[Effect::MakeDirectory], &[Effect::SpawnVmm], &[Effect::BootVm], &[]];
    for (count, effects) in expected.iter().enumerate() {
        assert_eq!(after(&RUNNING[..=count]).1, *effects);
    }
    assert_eq!(after(&RUNNING).0.state(), State::Running);
}

#[test]
fn a_pause_and_a_resume_wait_for_their_outcome() {
    let pause = [Event::Asked(Request::Pause), Event::VmPaused];
    assert_eq!(running_and(&pause[..1]), (running_and(&pause[..1]).0, vec![Effect::PauseVm]));
    assert_eq!(running_and(&pause[..1]).0.state().as_str(), "running");
    assert_eq!(running_and(&pause).0.state(), State::Paused);
    let resume = [&pause[..], &[Event::Asked(Request::Resume), Event::VmResumed]].concat();
    assert_eq!(running_and(&resume[..3]).1, [Effect::ResumeVm]);
    assert_eq!(running_and(&resume).0.state(), State::Running);
    assert_eq!(running_and(&[Event::Asked(Request::Pause), Event::PauseFailed]).0.state(), State::Running);
}

#[test]
fn a_stop_releases_newest_first() {
    let stop = [
        Event::Asked(Request::Stop),
        Event::VmmExited(VmmExit::Signal(15)),
        Event::Released(Resource::Socket),
        Event::Released(Resource::Directory),
    ];
    assert_eq!(running_and(&stop[..1]).1, [Effect::StopVmm]);
    assert_eq!(running_and(&stop[..2]).1, [Effect::Release(Resource::Socket)]);
    assert_eq!(running_and(&stop[..3]).1, [Effect::Release(Resource::Directory)]);
    assert_eq!(running_and(&stop).0.state(), State::Stopped(Ending::Asked));
}

#[test]
fn a_second_stop_does_nothing_and_a_kill_overtakes() {
    let stop = Event::Asked(Request::Stop);
    assert_eq!(running_and(&[stop, stop]).1, []);
    assert_eq!(running_and(&[stop, Event::Asked(Request::Kill)]).1, [Effect::KillVmm]);
}

#[test]
fn a_stop_during_the_start_kills_what_comes_up_later() {
    let begin = [Event::Asked(Request::Start), Event::DirectoryMade, Event::Asked(Request::Stop)];
    assert_eq!(after(&begin).1, []);
    assert_eq!(after(&[&begin[..], &[Event::VmmSpawned]].concat()).1, [Effect::KillVmm]);
    assert_eq!(
        after(&[&begin[..], &[Event::SpawnFailed]].concat()).1,
        [Effect::Release(Resource::Directory)]
    );
}

#[test]
fn how_the_vmm_ended_decides_between_stopped_and_failed() {
    let end = |begin: &[Event], exit| {
        let rest =
            [Event::VmmExited(exit), Event::Released(Resource::Socket), Event::Released(Resource::Directory)];
        after(&[begin, &rest].concat()).0.state()
    };
    let (success, failure) = (VmmExit::Code(0), VmmExit::Code(148));
    assert_eq!(end(&RUNNING, success), State::Stopped(Ending::Exited(success)));
    assert_eq!(end(&RUNNING, failure), State::Failed(Ending::Exited(failure)));
    assert_eq!(end(&RUNNING[..3], success), State::Failed(Ending::ExitedEarly(success)));
    let asked = [&RUNNING[..], &[Event::Asked(Request::Stop)]].concat();
    assert_eq!(end(&asked, VmmExit::Signal(9)), State::Stopped(Ending::Asked));
}

#[test]
fn a_failed_release_does_not_hold_up_the_others_and_is_tried_again() {
    let begin = [
        Event::Asked(Request::Stop),
        Event::VmmExited(VmmExit::Code(0)),
        Event::ReleaseFailed(Resource::Socket),
    ];
    assert_eq!(running_and(&begin).1, [Effect::Release(Resource::Directory)]);
    let stuck = [&begin[..], &[Event::Released(Resource::Directory)]].concat();
    assert_eq!(running_and(&stuck).0.held(), [Resource::Socket]);
    assert_eq!(running_and(&stuck).0.state().as_str(), "stopping");
    let again = [&stuck[..], &[Event::Asked(Request::Stop)]].concat();
    assert_eq!(running_and(&again).1, [Effect::Release(Resource::Socket)]);
}

#[test]
fn a_refusal_names_the_state_and_what_is_possible() {
    let refused = decide(running_and(&[]).0, Event::Asked(Request::Resume)).unwrap_err();
    assert_eq!(refused.to_string(), "cannot resume a machine that is running");
    assert_eq!(refused.code().as_str(), "INVALID_STATE");
    assert_eq!(refused.hint().as_deref(), Some("Possible now: pause, stop, kill."));
    assert_eq!(refused.happened(), Happened::NeverStarted);
}
