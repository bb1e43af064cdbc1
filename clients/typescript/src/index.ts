export { Client, type ClientOptions, type Tokens } from "./client.js";
export { Problem } from "./problem.js";
export { StreamBroken, type FollowOptions, type TurnEvent } from "./follow.js";
export { Socket, SocketClosed, type Frame, type RoomEvent, type SocketOptions } from "./socket.js";
export type { Body, CallOptions, Method, PathsWith, Query, Result } from "./call.js";
export type { components, operations, paths } from "./schema.js";
import type { components } from "./schema.js";

/** The resources of the API by name: `Schemas["Conversation"]`. */
export type Schemas = components["schemas"];
